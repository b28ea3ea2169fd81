"""The page "Try it" of the docs in headless Chromium: it loads from its folder of the site, needs no network
from then on, and what it fuses is what Python fuses.

Screenshots go to the folder named by MEDFUSION_SCREENSHOTS, if any.
"""
import gzip
import os
import re
import shutil
import struct
import subprocess
import sys
import time
import zlib
from base64 import b64decode
from contextlib import nullcontext
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from itertools import product
from pathlib import Path
from threading import Thread

import cv2
import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
FLAGS = ['--no-sandbox', '--disable-quic', '--no-first-run', '--disable-background-networking',
         '--disable-component-update', '--disable-sync', '--use-angle=swiftshader',
         '--enable-unsafe-swiftshader'] # WebGL without a GPU

sync_api = pytest.importorskip('playwright.sync_api',
                               reason='playwright is not installed: pip install playwright')
pytestmark = [pytest.mark.browser,
              pytest.mark.skipif(CHROMIUM is None,
                                 reason='no Chromium on this machine: apt-get install chromium'),
              pytest.mark.skipif(shutil.which('npm') is None,
                                 reason='no npm on this machine: apt-get install npm')]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_): pass


class Page:
    "The page, driven as a visitor does."
    def __init__(self, page):
        self.page, self.errors = page, []
        page.on('pageerror', lambda e: self.errors.append(str(e)))
        page.on('console', lambda m: self.errors.append(m.text) if m.type == 'error' else None)

    def choose(self, ct, mri):
        "Both files; what the page says of them."
        self.page.locator('#ct-file').set_input_files(ct or [])
        self.page.locator('#mri-file').set_input_files(mri or [])
        return self.answer()

    def answer(self):
        "What the page says in the end: how long it took, or what is wrong."
        self.page.wait_for_function('''() => !document.getElementById("error").hidden
            || !/…$/.test(document.getElementById("status").textContent)''')
        return self.page.locator('#error:visible, #status').last.inner_text()

    def saved(self, folder):
        "The file that the visitor saves."
        with self.page.expect_download() as download: self.page.locator('#save').click()
        path = folder/download.value.suggested_filename
        download.value.save_as(path)
        return path

    def screenshots(self, what):
        "The whole page, on a desktop and on a phone, in light and dark."
        folder = os.environ.get('MEDFUSION_SCREENSHOTS')
        for width, look in product((1280, 360), ('light', 'dark')) if folder else ():
            self.page.set_viewport_size(dict(width=width, height=800))
            self.page.emulate_media(color_scheme=look)
            self.page.wait_for_timeout(500)
            self.page.screenshot(path=Path(folder)/f'try_it_{what}_{width}_{look}.png', full_page=True)
        self.page.set_viewport_size(dict(width=1280, height=800))


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "The site, with nothing but this page."
    root = tmp_path_factory.mktemp('site')
    target = root/'medfusion_nb'/'try_it'
    target.parent.mkdir()
    command = [sys.executable, str(ROOT/'.ci'/'site.py'), str(target)]
    env = {**os.environ, 'PYTHONPATH': str(ROOT)}
    built = subprocess.run(command, env=env, capture_output=True, text=True)
    assert not built.returncode, built.stderr
    print(built.stdout.strip())
    return root


@pytest.fixture(scope='module')
def loaded(site):
    "The page after it has loaded; the server is gone."
    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=site))
    Thread(target=server.serve_forever, daemon=True).start()
    with sync_api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        page = Page(browser.new_page(viewport=dict(width=1280, height=800)))
        page.requests = []
        page.page.on('request', lambda r: page.requests.append(r.url))
        start = time.monotonic()
        page.site = f'http://127.0.0.1:{server.server_port}/medfusion_nb/'
        page.page.goto(f'{page.site}try_it/')
        page.page.wait_for_selector('body[data-ready]')
        page.seconds = time.monotonic() - start
        server.shutdown()
        server.server_close()
        page.at_start = len(page.requests)
        yield page
        browser.close()


@pytest.fixture
def page(loaded):
    "The same, with nothing chosen; nothing went wrong in the end."
    loaded.errors.clear()
    loaded.choose(None, None)
    yield loaded
    assert loaded.errors == []


@pytest.fixture(scope='module')
def engine():
    from medfusion_nb.fuse import load_engine
    return load_engine('compact', 'cpu')


def filtered(k, row, above, back):
    "A row of a PNG as its filter stores it."
    a, c = (np.concatenate([np.zeros(back, int), x])[:len(x)] for x in (row, above)) # left, above left
    away = [abs(above - c), abs(a - c), abs(a + above - 2*c)]
    paeth = np.choose(np.argmin(away, axis=0), [a, above, c])
    return bytes([k]) + ((row - [0, a, above, (a + above)//2, paeth][k])%256).astype(np.uint8).tobytes()


def write_png(path, pixels, depth, kind, interlaced=False, **more):
    "A PNG of any depth and type of colour, (H,W,C), its rows with all filters in turn; `more`: chunks."
    def packed(a):
        flat = a.reshape(len(a), -1)
        if depth == 16: return flat.astype('>u2').view(np.uint8)
        if depth == 8: return flat.astype(np.uint8)
        bits = np.unpackbits(flat.astype(np.uint8)[..., None], axis=-1)[..., 8 - depth:]
        return np.packbits(bits.reshape(len(a), -1), axis=1)
    adam7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    parts = [pixels[y::dy, x::dx] for x, y, dx, dy in (adam7 if interlaced else [(0, 0, 1, 1)])]
    back, rows = max(1, depth*pixels.shape[2]//8), b''
    for part in map(packed, filter(np.size, parts)):
        lines = part.astype(int)
        before = [0*lines[0], *lines]
        rows += b''.join(filtered(k%5, row, above, back) for k, (row, above) in enumerate(zip(lines, before)))
    header = struct.pack('>IIBBBBB', *pixels.shape[1::-1], depth, kind, 0, 0, interlaced)
    chunks = dict(IHDR=header, **more, IDAT=zlib.compress(rows), IEND=b'')
    data = b'\x89PNG\r\n\x1a\n'
    for name, body in chunks.items():
        body = name.encode() + body
        data += struct.pack('>I', len(body) - 4) + body + struct.pack('>I', zlib.crc32(body))
    path.write_bytes(data)
    return path


def heads(height=133, width=141):
    "A CT and an MRI in [0,1], of a size that is no multiple of 8; the borders cut through the head."
    from medfusion_nb.phantom import phantom_pair
    head = phantom_pair(256, seed=4)
    return (x[70:70 + height, 50:50 + width] for x in (head.ct, head.mri))


def volumes():
    "A phantom as two arrays (x,y,z), the CT in HU, and their affine in RAS, mm."
    from medfusion_nb.phantom import phantom_volume
    head = phantom_volume((51, 60, 17), seed=2)
    return (*(sitk.GetArrayFromImage(v).T for v in (head.ct, head.mri)), affine(head.ct))


def affine(image):
    from medfusion_nb.volume import _ras_affine
    return _ras_affine(image)


def write_nifti(path, a, matrix, qform=False, slope=1, inter=0, order='<'):
    "An array (x,y,z) as it is stored, on any grid."
    nii = nibabel.Nifti1Image(a, matrix, nibabel.Nifti1Header(endianness=order), dtype=a.dtype)
    for form, code in ((nii.set_sform, not qform), (nii.set_qform, qform)): form(matrix, int(code))
    data = nii.to_bytes()
    at = {'<': '<ff', '>': '>ff'}[order]
    data = data[:112] + struct.pack(at, slope, inter) + data[120:]
    if path.suffix == '.gz':
        data = gzip.compress(data)
    path.write_bytes(data)
    return path


def fused_in_python(ct, mri, engine, window=None):
    "As medfusion_fuse CT MRI --register never --pair ct-mri: the fused volume as an array (x,y,z)."
    from medfusion_nb.study import align, fuse_study
    from medfusion_nb.volume import read_volume
    study = fuse_study(align(read_volume(ct, 'CT'), read_volume(mri, 'MR'), 'never'), engine, window)
    return sitk.GetArrayFromImage(study.fused).T, affine(study.fused)


def check_volume(page, ct, mri, engine, folder, window=None):
    "What the page saves is what Python computes."
    wanted, matrix = fused_in_python(ct, mri, engine, window)
    found = nibabel.load(page.saved(folder))
    np.testing.assert_allclose(found.affine, matrix, atol=1e-4)
    assert np.ptp(wanted) > .5
    np.testing.assert_allclose(found.get_fdata(), wanted, atol=1/255)


def test_loads(loaded):
    "All that the page needs comes from its own folder, before anything is chosen."
    print(f'ready after {loaded.seconds:.1f} s, {loaded.at_start} requests')
    assert loaded.errors == []
    assert [u for u in loaded.requests if not u.startswith(f'{loaded.site}try_it/')] == []
    names = {u.rpartition('/')[2] for u in loaded.requests}
    assert {'model.onnx', 'ort-wasm-simd-threaded.wasm', 'niivue.js', 'phantom_mri.nii.gz'} <= names


def test_phantom_pictures(page, engine, tmp_path, site):
    "One click; the second fusion is timed, as the first one warms up."
    from medfusion_nb.fuse import fuse
    for _ in range(2):
        page.page.get_by_role('button', name='phantom pictures').click()
        said = page.answer()
    print(f'256 x 256: {said}')
    assert re.fullmatch(r'Fused in \d+\.\d\d s, in this browser\.', said)
    saved = Image.open(page.saved(tmp_path))
    folder = site/'medfusion_nb'/'try_it'
    wanted = fuse(folder/'phantom_ct.png', folder/'phantom_mri.png', engine=engine)
    assert saved.mode == 'L' and saved.size == (256, 256) and wanted.std() > .1
    np.testing.assert_allclose(np.asarray(saved)/255, wanted, atol=1/255)
    page.screenshots('pictures')


PICTURES = { # the numbers of the CT -> how [0,1] is stored, and what the page tells
    '8-bit': (lambda a: (255*a).astype(np.uint8), ''),
    '12 of 16 bits': (lambda a: (4095*a).astype(np.uint16), 'white is taken to be 4095'),
    '16-bit': (lambda a: (65535*a).astype(np.uint16), ''),
    'colour': (lambda a: (255*np.stack([a, .8*a, .5*a], -1)).astype(np.uint8), 'the colour is dropped'),
    '16-bit colour': (lambda a: (65535*np.stack([a, .8*a, .5*a], -1)).astype(np.uint16),
                      'the colour is dropped')}

@pytest.mark.parametrize('kind', PICTURES)
@pytest.mark.parametrize('ending', ['.png', '.jpg'])
def test_pictures(page, engine, tmp_path, kind, ending):
    "Of a size that is no multiple of 8, in all numbers that pictures hold."
    from medfusion_nb.fuse import fuse
    if ending == '.jpg' and '16' in kind: return
    (a, b), (stored, told) = heads(), PICTURES[kind]
    ct, mri = tmp_path/f'ct{ending}', tmp_path/f'mri{ending}'
    cv2.imwrite(str(ct), stored(a))
    cv2.imwrite(str(mri), (255*b).astype(np.uint8))
    assert page.choose(ct, mri).startswith('Fused in')
    with pytest.warns() if told else nullcontext(): wanted = fuse(ct, mri, engine=engine)
    notes = page.page.locator('#notes').inner_text()
    assert told in notes and bool(told) == bool(notes)
    saved = np.asarray(Image.open(page.saved(tmp_path)))
    assert saved.shape == wanted.shape == (133, 141)
    np.testing.assert_allclose(saved/255, wanted, atol=1/255)


GREY, COLOR, PALETTE, GREY_ALPHA, COLOR_ALPHA = 0, 2, 3, 4, 6
KINDS = [(GREY, d) for d in (1, 2, 4, 8, 16)] + [(PALETTE, d) for d in (1, 2, 4, 8)]
KINDS += [(kind, d) for kind in (COLOR, GREY_ALPHA, COLOR_ALPHA) for d in (8, 16)]

def test_png_to_the_last_bit(page, tmp_path):
    "Every depth and type of colour, with and without interlacing, and with all filters, as Python reads it."
    from medfusion_nb.data import decode_image
    rng, files = np.random.default_rng(0), []
    for kind, depth in KINDS:
        for interlaced in (False, True):
            channels = {GREY: 1, COLOR: 3, PALETTE: 1, GREY_ALPHA: 2, COLOR_ALPHA: 4}[kind]
            pixels = rng.integers(0, 2**depth, (13, 21, channels))
            if channels in (2, 4): pixels[..., -1] = 2**depth - 1
            colors = rng.integers(0, 256, 3*2**depth).astype(np.uint8).tobytes()
            more = dict(PLTE=colors) if kind == PALETTE else {}
            path = tmp_path/f'{kind}_{depth}_{interlaced}.png'
            files.append(write_png(path, pixels, depth, kind, interlaced, **more))
    for path in files:
        found = page.page.evaluate("""async bytes => {
            const {decodePNG} = await import('./png.js'), {withoutAlpha} = await import('./numbers.js')
            const {channels, data} = withoutAlpha('', await decodePNG('', Uint8Array.from(bytes)))
            return [channels, ...data] }""", list(path.read_bytes()))
        found = np.reshape(found[1:], (-1, found[0]))
        wanted = decode_image(path, True, 65535).reshape(-1, 3)
        assert np.array_equal(np.broadcast_to(found, wanted.shape), wanted), path.name


def test_volumes(page, engine, tmp_path):
    """Of an odd size, as other programs store them: with slope and intercept, compressed,
    with axes in another order, with voxels that are no numbers."""
    ct, mri, matrix = volumes()
    turned = np.ascontiguousarray(ct.transpose(1, 2, 0)[::-1])
    moved = matrix @ np.array([[0, 0, 1, 0], [-1, 0, 0, ct.shape[1] - 1], [0, 1, 0, 0], [0, 0, 0, 1.]])
    stored = ((turned + 1024)/.5).astype(np.uint16)
    a = write_nifti(tmp_path/'ct.nii.gz', stored, moved, slope=.5, inter=-1024)
    real = mri.astype(np.float32)
    real[:2, :2, :2] = np.nan
    b = write_nifti(tmp_path/'mri.nii', real, matrix)
    assert page.choose(a, b).startswith('Fused in')
    assert '8 voxels that are not numbers' in page.page.locator('#notes').inner_text()
    check_volume(page, a, b, engine, tmp_path)
    page.screenshots('volumes')


def test_coronal_volumes(page, engine, tmp_path):
    "Slices from front to back, big-endian numbers, placed by the qform; another window."
    ct, mri, matrix = volumes()
    ct, mri = (x[:, ::5, :].astype('>i2') for x in (ct, mri))
    matrix = matrix @ np.diag([1, 5, 1, 1])
    a, b = (write_nifti(tmp_path/f'{name}.nii', x, matrix, qform=True, order='>')
            for name, x in (('ct', ct), ('mri', mri)))
    assert page.choose(a, b).startswith('Fused in')
    assert page.page.get_by_label('Plane').input_value() == 'coronal'
    assert page.page.locator('#slice-number').inner_text() == '7 of 12'
    page.page.get_by_label('Preset').select_option('bone')
    page.answer()
    assert 'trained with the window 40/80' in page.page.locator('#notes').inner_text()
    check_volume(page, a, b, engine, tmp_path, 'bone')


def wrong_files(folder):
    "CT, MRI, and what the page must say."
    ct, mri, matrix = volumes()
    a, b = (255*x for x in heads())
    def picture(name, pixels, cut=None):
        path = folder/name
        cv2.imwrite(str(path), pixels.astype(np.uint8))
        if cut: path.write_bytes(path.read_bytes()[:cut])
        return path
    def volume(name, values, matrix=matrix): return write_nifti(folder/name, values, matrix)
    good, other = picture('ct.png', a), picture('mri.png', b)
    text = folder/'notes.png'
    text.write_text('no picture')
    dicom = folder/'scan.dcm'
    dicom.write_bytes(bytes(128) + b'DICM')
    clear = write_png(folder/'clear.png', np.full((133, 141, 2), 128), 8, GREY_ALPHA)
    hu, t2 = volume('ct.nii', ct), volume('mri.nii.gz', mri)
    broken = folder/'broken.nii.gz'
    broken.write_bytes(t2.read_bytes()[:5000])
    yield good, None, 'Choose the MRI as well'
    yield None, other, 'Choose the CT as well'
    yield good, good, 'ct.png: choose two different ones'
    yield text, other, 'notes.png is not a PNG, JPEG or NIfTI file'
    yield good, dicom, 'scan.dcm is a DICOM file: convert it to .nii.gz'
    yield good, picture('cut.png', b, 3000), 'cut.png is truncated or damaged: copy it again'
    yield picture('cut.jpg', a, 3000), other, 'cut.jpg is truncated or damaged: copy it again'
    yield good, clear, 'clear.png: 100.0% of its pixels are transparent'
    yield good, picture('small.png', b[:64]), 'ct.png has 133 x 141 pixels, small.png has 64 x 141'
    yield picture('huge.png', np.zeros((2049, 2048))), other, 'huge.png has 2049 x 2048 pixels, too many'
    yield good, t2, 'mri.nii.gz is a volume and ct.png a picture'
    yield t2, hu, 'ct.nii is the CT by its values, mri.nii.gz is not: swap them'
    yield t2, volume('t1.nii', mri), 'mri.nii.gz is no CT in Hounsfield units'
    yield volume('lost.nii', ct + 1024), t2, 'lost.nii is no CT in Hounsfield units (the intercept was lost'
    yield volume('seen.nii', (ct/80).clip(0, 1).astype('f4')), t2, 'it has been rescaled to [0,1]'
    yield hu, volume('ct2.nii', ct), 'ct2.nii is a CT, its values are Hounsfield units: choose the MRI'
    yield hu, broken, 'broken.nii.gz is truncated or damaged'
    yield hu, volume('near.nii', mri[:48]), '48 x 60 x 17 voxels of'
    yield hu, volume('away.nii', mri, matrix + 5*np.eye(4, k=3)), 'the grids differ'
    yield hu, volume('many.nii', np.stack([mri, mri], -1)), 'many.nii: it has 4 dimensions, 51 x 60 x 17 x 2'
    yield hu, volume('flat.nii', 0*mri), 'flat.nii: its voxels are all 0'


def test_messages(page, tmp_path):
    "What is wrong is said in one line that names the file and what to do; the right files follow."
    for ct, mri, expected in wrong_files(tmp_path):
        said = page.choose(ct, mri)
        assert expected in said and '\n' not in said
        assert page.page.locator('#result').is_hidden()
    page.choose(tmp_path/'notes.png', tmp_path/'mri.png')
    page.screenshots('message')
    assert page.choose(tmp_path/'ct.png', tmp_path/'mri.png').startswith('Fused in')
    assert page.page.locator('#error').is_hidden()


def test_drop_and_swap(page, tmp_path):
    "Two files are told by their names, wherever they are dropped."
    for name, x in zip(('b_ct.png', 'a_t2.png'), heads()):
        cv2.imwrite(str(tmp_path/name), (255*x).astype(np.uint8))
    def names():
        return page.page.locator('.drop input').evaluate_all('inputs => inputs.map(i => i.files[0].name)')
    page.page.evaluate("""files => {
        const dataTransfer = new DataTransfer()
        for (const [name, bytes] of files) dataTransfer.items.add(new File([Uint8Array.from(bytes)], name))
        document.body.dispatchEvent(new DragEvent('drop', {dataTransfer, bubbles: true})) }""",
        [(n, list((tmp_path/n).read_bytes())) for n in ('a_t2.png', 'b_ct.png')])
    assert page.answer().startswith('Fused in') and names() == ['b_ct.png', 'a_t2.png']
    page.page.get_by_role('button', name='Swap').click()
    assert page.answer().startswith('Fused in') and names() == ['a_t2.png', 'b_ct.png']


def shown(page, figure):
    "What a picture shows, (H,W) of 8 bits."
    url = page.page.locator(f'figure.{figure} .picture canvas').evaluate('canvas => canvas.toDataURL()')
    return np.asarray(Image.open(BytesIO(b64decode(url.partition(',')[2]))).convert('L')).astype(int)


def test_blend(page, tmp_path):
    "The keys of the slider lead from the CT to the MRI."
    page.page.get_by_role('button', name='phantom pictures').click()
    page.answer()
    slider, caption = page.page.get_by_label('Blend'), page.page.locator('#seen')
    fused = shown(page, 'fused')
    for key, figure, text in (('Home', 'ct', '0% fused, 100% CT'), ('End', 'mri', '0% fused, 100% MRI')):
        slider.press(key)
        assert caption.inner_text() == text
        np.testing.assert_array_equal(shown(page, 'fused'), shown(page, figure))
        assert np.abs(fused - shown(page, figure)).max() > 100
    slider.fill('50')
    assert caption.inner_text() == 'Fused'
    np.testing.assert_array_equal(shown(page, 'fused'), fused)


def test_slices(page):
    "The slider, the planes and a click move all three views."
    page.page.get_by_role('button', name='phantom volumes').click()
    page.answer()
    slider, number = page.page.get_by_label('Slice', exact=True), page.page.locator('#slice-number')
    views = page.page.locator('figure .volume canvas')
    before = [views.nth(i).screenshot() for i in range(3)]
    assert number.inner_text() == '23 of 45'
    slider.press('ArrowRight')
    assert number.inner_text() == '24 of 45'
    after = [views.nth(i).screenshot() for i in range(3)]
    assert all(a != b for a, b in zip(before, after))
    page.page.get_by_label('Plane').select_option('sagittal')
    assert number.inner_text() == '65 of 128'
    page.page.get_by_label('Plane').select_option('axial')
    box = views.nth(0).bounding_box()
    page.page.mouse.click(box['x'] + .3*box['width'], box['y'] + .5*box['height'])
    page.page.get_by_label('Plane').select_option('sagittal')
    assert 30 < int(number.inner_text().split()[0]) < 50


def test_fits_a_phone(page, tmp_path):
    "Nothing is wider than the screen, and every control has a name."
    ct, mri, matrix = volumes()
    files = [write_nifti(tmp_path/f'{name}.nii', x, matrix) for name, x in (('ct', ct), ('mri', mri))]
    page.page.set_viewport_size(dict(width=320, height=640))
    assert page.choose(*files).startswith('Fused in')
    assert page.page.evaluate('() => document.documentElement.scrollWidth') <= 320
    page.page.set_viewport_size(dict(width=1280, height=800))
    unnamed = page.page.evaluate("""() => [...document.querySelectorAll('input, select, button')].filter(
        x => !(x.labels?.length || x.ariaLabel || x.textContent.trim())).map(x => x.outerHTML)""")
    assert unnamed == []


def test_nothing_is_sent(loaded):
    "Of all that the tests above did, nothing left the page."
    assert loaded.requests[loaded.at_start:] == []
