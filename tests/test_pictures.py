"""Image files as programs write them, and as they break: one picture gives one array, whatever it is kept in,
and what cannot be read right is refused by name."""
import io
import random
import struct
import warnings
import zlib
from unicodedata import normalize

import cv2
import numpy as np
import pytest
from conftest import one_line
from PIL import Image, ImageOps

from medfusion_nb.data import (MAX_PIXELS, FusionDataset, color_share, decode_image, find_pairs, find_range,
                               find_ranges, llvip_pairs, read_hu, read_image)
from medfusion_nb.datasets import verify, worst_figure
from medfusion_nb.fuse import fuse, fuse_files
from medfusion_nb.phantom import phantom_pair

HEAD = phantom_pair(64, seed=1)
GREY = np.round(255*HEAD.mri).astype(np.uint8)
COLOR = np.dstack([GREY, GREY[::-1], 255 - GREY])


class Brighter: # an engine that needs no network
    window, batch_size = (40., 80.), 4
    def __call__(self, ct, mri): return np.maximum(np.stack(ct), np.stack(mri)).astype(np.float32)


def tiff(a, order='<', rows=16, **changes):
    "An uncompressed TIFF, with tags changed: t274=(type, values)."
    a = np.asarray(a)
    h, w = a.shape[:2]
    n = 1 if a.ndim == 2 else a.shape[2]
    a = a.astype(a.dtype.newbyteorder(order))
    data = [a[i:i + rows].tobytes() for i in range(0, h, rows)]
    offsets = np.cumsum([8, *map(len, data)])
    tags = {256: (4, [w]), 257: (4, [h]), 258: (3, [8*a.dtype.itemsize]*n), 259: (3, [1]),
            262: (3, [2 if n > 2 else 1]), 273: (4, offsets[:-1]), 277: (3, [n]), 278: (4, [rows]),
            279: (4, [*map(len, data)]), 339: (3, [dict(u=1, i=2, f=3)[a.dtype.kind]]*n)}
    tags |= {int(k[1:]): v for k, v in changes.items()}
    directory = int(offsets[-1])
    at, entries, more = directory + 2 + 12*len(tags) + 4, b'', b''
    for tag, (kind, values) in sorted(tags.items()):
        raw = struct.pack(f'{order}{len(values)}{ {3: "H", 4: "I"}[kind]}', *values)
        if len(raw) > 4:
            raw, more = struct.pack(order + 'I', at + len(more)), more + raw
        entries += struct.pack(order + 'HHI', tag, kind, len(values)) + raw.ljust(4, b'\0')
    start = (b'II' if order == '<' else b'MM') + struct.pack(order + 'HI', 42, directory)
    return start + b''.join(data) + struct.pack(order + 'H', len(tags)) + entries + b'\0\0\0\0' + more


def save(img, name, **kwargs):
    Image.fromarray(img).save(name, **kwargs)
    return name


def chunk(kind, body): return struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))


def exif(n):
    tag = Image.Exif()
    tag[0x112] = n
    return tag


@pytest.mark.parametrize('n', range(1, 9))
def test_orientation_is_the_same_in_every_format(tmp_path, n):
    right = np.asarray(ImageOps.exif_transpose(Image.open(save(GREY, tmp_path/'a.png', exif=exif(n)))))
    np.testing.assert_array_equal(decode_image(tmp_path/'a.png'), right)
    save(GREY, tmp_path/'a.jpg', exif=exif(n), quality=100)
    assert np.abs(decode_image(tmp_path/'a.jpg').astype(int) - right).max() < 5
    for order, kind in (('<', np.uint8), ('>', np.uint16), ('<', np.float32)):
        full = {np.uint8: 1, np.uint16: 257, np.float32: 1/255}[kind]
        (tmp_path/'a.tif').write_bytes(tiff((GREY.astype(float)*full).round(6).astype(kind), order, t274=(3, [n])))
        np.testing.assert_allclose(255*read_image(tmp_path/'a.tif'), right, atol=.01)
    deep = COLOR.astype(np.uint16)*257
    (tmp_path/'deep.tif').write_bytes(tiff(deep, t274=(3, [n])))
    png, note = cv2.imencode('.png', deep[..., ::-1])[1].tobytes(), chunk(b'eXIf', exif(n).tobytes()[6:])
    (tmp_path/'late.png').write_bytes(png[:-12] + note + png[-12:]) # after the pixels
    save(COLOR, tmp_path/'color.png', exif=exif(n))
    eight = decode_image(tmp_path/'color.png', True)
    for name in ('deep.tif', 'late.png'): np.testing.assert_array_equal(decode_image(tmp_path/name, True), eight*257.)


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="3"/></x:xmpmeta>'
PROFILE = b'Raw profile type exif\0\0'


def test_orientation_that_is_not_in_exif(tmp_path):
    "ImageMagick keeps EXIF data in a text, and some programs write XMP only."
    raw = exif(3).tobytes()
    text = zlib.compress(f'\nexif\n{len(raw):8d}\n{raw.hex()}\n'.encode())
    data = save(GREY, tmp_path/'a.png').read_bytes()
    deep = cv2.imencode('.png', COLOR[..., ::-1].astype(np.uint16)*257)[1].tobytes()
    for note in (chunk(b'zTXt', PROFILE + text), chunk(b'iTXt', b'XML:com.adobe.xmp\0\0\0\0\0' + XMP)):
        for whole, right in ((data, GREY), (deep, COLOR*257.)):
            for at in (33, len(whole) - 12): # before and after the pixels
                (tmp_path/'a.png').write_bytes(whole[:at] + note + whole[at:])
                np.testing.assert_array_equal(decode_image(tmp_path/'a.png', None), right[::-1, ::-1])
    save(GREY, tmp_path/'a.jpg', xmp=XMP, quality=100)
    assert np.abs(decode_image(tmp_path/'a.jpg').astype(int) - GREY[::-1, ::-1]).max() < 5
    (tmp_path/'a.png').write_bytes(data[:33] + chunk(b'zTXt', PROFILE + zlib.compress(b'x\ny\nz\nw')) + data[33:])
    np.testing.assert_array_equal(decode_image(tmp_path/'a.png'), GREY) # damaged


KINDS = {f'{b} bits': lambda a, b=b: np.round(a*(2**b - 1)).astype(np.uint16) for b in (8, 10, 12, 14)} | {
    'signed': lambda a: np.round(a*4095).astype(np.int16), 'long': lambda a: np.round(a*65535).astype(np.int32),
    'real': lambda a: (a*255).astype(np.float32)}


@pytest.mark.parametrize('kind', KINDS)
def test_numbers_decide_what_is_white(tmp_path, kind):
    (tmp_path/'a.tif').write_bytes(tiff(KINDS[kind](HEAD.ct)))
    with pytest.warns(UserWarning, match='--range'): a = read_image(tmp_path/'a.tif')
    assert np.abs(a - HEAD.ct).max() < 1/255
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        half = read_image(tmp_path/'a.tif', range=2*float(KINDS[kind](HEAD.ct).max()))
    assert np.abs(2*half - HEAD.ct).max() < 1/255


def test_numbers_that_are_white_as_they_are(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for a in (HEAD.ct.astype(np.float32), np.round(HEAD.ct*65535).astype(np.uint16)):
            (tmp_path/'a.tif').write_bytes(tiff(a))
            assert np.abs(read_image(tmp_path/'a.tif') - HEAD.ct).max() < 1/65535
        np.testing.assert_array_equal(decode_image(save(GREY > 90, tmp_path/'a.png')), 255*(GREY > 90))


@pytest.mark.parametrize('a,why', [
    (HEAD.ct*1.5, 'what is white'), (HEAD.ct*np.nan, 'not numbers'), (HEAD.ct*3e38, 'what is white'),
    (HEAD.ct_hu.astype(np.int16), 'below 0'), (HEAD.ct_hu.astype(np.int8), 'signed 8-bit'),
    (HEAD.ct.astype(np.float64), 'not read')])
def test_numbers_that_are_no_grey_levels(tmp_path, a, why):
    (tmp_path/'a.tif').write_bytes(tiff(a))
    with pytest.raises(ValueError, match=f'a.tif.*{why}'): read_image(tmp_path/'a.tif')


def test_hounsfield_units_reach_below_zero(tmp_path):
    (tmp_path/'hu.tif').write_bytes(tiff(HEAD.ct_hu.astype(np.int16)))
    np.testing.assert_array_equal(read_hu(tmp_path/'hu.tif'), HEAD.ct_hu.astype(np.int16))
    (tmp_path/'no.tif').write_bytes(tiff(GREY.astype(np.int16)))
    with pytest.raises(ValueError, match='not Hounsfield'): read_hu(tmp_path/'no.tif')


def twelve(folder, most=(4000, 900, 20)):
    "Two folders of 12-bit numbers in 16-bit files, the second and third slice dark."
    for kind in ('CT', 'MRI'):
        (folder/kind).mkdir(parents=True)
        for i, top in enumerate(most):
            save((top*getattr(HEAD, kind.lower())).astype(np.uint16), folder/kind/f'{1001 + i}.png')
    return folder


def test_a_folder_has_one_white(tmp_path):
    root = twelve(tmp_path/'set')
    with pytest.warns(UserWarning, match='12-bit') as said:
        fuse_files(root/'CT', root/'MRI', tmp_path/'out', engine=Brighter())
    assert len(said) == 2 # one a folder, not one a file
    right = np.maximum(HEAD.ct, HEAD.mri)
    for i, top in enumerate((4000, 900, 20)):
        assert np.abs(read_image(tmp_path/f'out/{1001 + i}.png') - right*top/4095).max() < 1.5/255
    result = verify(root)
    assert not result['ok'] and '--range' in result['problems'][0]
    assert '12-bit' not in str(verify(root, range=4095)['problems'])
    worst_figure(result)


def test_the_white_of_a_split_is_that_of_the_set(tmp_path):
    pairs = find_pairs(twelve(tmp_path/'set'))
    ranges = find_ranges(pairs, say=lambda text: None)
    dark = FusionDataset(pairs[2:], range=ranges)[0]
    assert abs(dark[0].max() - 20/4095) < 1e-3
    with pytest.raises(ValueError, match='above 100'): FusionDataset(pairs, range=100)


def test_a_nearly_black_file_is_said(tmp_path):
    save(GREY//20, tmp_path/'a.png')
    with pytest.warns(UserWarning, match='nearly black'): read_image(tmp_path/'a.png')


def odd_whites():
    "Numbers of which the largest says little: array, words of the warning."
    twelve, mark = GREY.astype(np.uint16)*16, (slice(2, 4), slice(2, 9))
    for a, kind in ((twelve, np.uint16), (GREY//16, np.uint8), (twelve, np.int32)):
        a = a.astype(kind)
        a[mark] = 255 if kind == np.uint8 else 65535
        yield a, 'nearly black, 99.5% .*--range'
    yield twelve + np.uint16(32768), 'nearly flat grey.*--range'


@pytest.mark.parametrize('a,why', [*odd_whites()], ids=['marker', '8 bits', '32 bits', 'offset'])
def test_the_largest_number_may_mislead(tmp_path, a, why):
    (tmp_path/'a.tif').write_bytes(tiff(a))
    with pytest.warns(UserWarning, match=f'a.tif: {why}'): read_image(tmp_path/'a.tif')
    (tmp_path/'b.tif').write_bytes(tiff(a//2*2))
    said = []
    find_range(sorted(tmp_path.iterdir()), say=said.append)
    assert len(said) == 1 and said[0].startswith(f'{tmp_path} (2 images): nearly')
    usual = GREY if a.dtype == np.uint8 else (GREY.astype(np.uint16)*257).astype(a.dtype)
    (tmp_path/'c.tif').write_bytes(tiff(usual))
    said.clear()
    find_range(sorted(tmp_path.iterdir()), say=said.append) # one image shows what is white
    assert not any('nearly' in text for text in said)


def test_few_numbers_above_the_range_are_clipped(tmp_path):
    a = GREY.astype(np.uint16)*16
    a[2:4, 2:9] = 65535 # 14 of 4096
    (tmp_path/'a.tif').write_bytes(tiff(a))
    with pytest.warns(UserWarning, match='a.tif holds numbers above 4080.*0.3% .*become white'):
        got = decode_image(tmp_path/'a.tif', range=4080)
    np.testing.assert_array_equal(got[2:4, 2:9], 65535)
    assert np.abs(got[8:]/257 - GREY[8:]).max() < .01
    a[2:6, 2:20] = 65535 # 1.8 %
    (tmp_path/'a.tif').write_bytes(tiff(a))
    with pytest.raises(ValueError, match='a.tif holds numbers above 4080'): read_image(tmp_path/'a.tif', range=4080)


def test_negative_numbers(tmp_path, recwarn):
    (tmp_path/'a.tif').write_bytes(tiff(HEAD.mri.astype(np.float32) - np.float32(5e-4)))
    assert np.abs(read_image(tmp_path/'a.tif') - HEAD.mri).max() < 6e-4
    for a, says, other in ((HEAD.ct_hu, 'medfusion_nb.data, or fuse the volume', 'shift'),
                           ((HEAD.mri - .3)*5, 'shift them', 'Hounsfield')):
        for kind in (np.float32, np.int16):
            (tmp_path/'a.tif').write_bytes(tiff(a.astype(kind)))
            with pytest.raises(ValueError, match=says) as e: read_image(tmp_path/'a.tif')
            assert other not in str(e.value)
    assert not recwarn.list # no note on what is refused
    a = np.round(HEAD.mri*4294967295).astype(np.uint32)
    (tmp_path/'a.tif').write_bytes(tiff(a))
    assert np.abs(read_image(tmp_path/'a.tif') - HEAD.mri).max() < 1e-4
    with pytest.raises(ValueError, match='uint32 values, which are not Hounsfield'): read_hu(tmp_path/'a.tif')


def test_the_command_says_it_and_takes_a_range(here, tmp_path):
    save(GREY, tmp_path/'ct.png')
    save(GREY.astype(np.uint16)*16, tmp_path/'mri.png')
    code, out, err = here('medfusion_fuse', 'ct.png', 'mri.png', '-o', 'a.png')
    assert code == 0 and '12-bit' in one_line(err)
    assert here('medfusion_fuse', 'ct.png', 'mri.png', '--range', '4080', '-o', 'b.png')[::2] == (0, '')
    assert here('medfusion_fuse', 'ct.png', 'ct.png', '--range', 'x')[0] == 2
    assert np.abs(read_image('a.png') - read_image('b.png')).max() < 2.1/255


def test_alpha(tmp_path):
    alpha = np.where(GREY > 60, 255, 0).astype(np.uint8)
    save(np.dstack([np.where(alpha, GREY, 0), alpha]).astype(np.uint8), tmp_path/'a.png')
    np.testing.assert_array_equal(decode_image(tmp_path/'a.png'), np.where(alpha, GREY, 0)) # black underneath
    for a in (np.dstack([np.where(alpha, GREY, 255), alpha]), np.dstack([COLOR, alpha])):
        for ext in ('png', 'tif'):
            save(a.astype(np.uint8), tmp_path/f'a.{ext}')
            with pytest.raises(ValueError, match='transparent'): read_image(tmp_path/f'a.{ext}')
    clear = np.dstack([GREY, 0*GREY + 255])
    clear[2, 3] = 100, 0
    with pytest.raises(ValueError, match='a.png: under 0.1% of its'): read_image(save(clear, tmp_path/'a.png'))
    np.testing.assert_array_equal(decode_image(save(np.dstack([COLOR, 0*GREY + 255]), tmp_path/'a.png'), True), COLOR)


def test_color_that_is_dropped(tmp_path, recwarn):
    pet, mri = save(COLOR, tmp_path/'pet.png'), save(GREY, tmp_path/'mri.png')
    with pytest.warns(UserWarning, match='pet.png is in colour.*--pair pet-mri'): fuse(pet, mri, engine=Brighter())
    with pytest.raises(ValueError, match='PET first'): fuse(mri, pet, engine=Brighter(), pair='pet-mri')
    with pytest.warns(UserWarning, match='pet.png: its colours are those of no known map'):
        assert fuse(pet, mri, engine=Brighter(), pair='pet-mri').shape == (64, 64, 3)
    recwarn.clear()
    save(np.dstack([GREY]*3), tmp_path/'grey.jpg', quality=30)
    assert color_share(decode_image(tmp_path/'grey.jpg', None)) == 0
    fuse(tmp_path/'grey.jpg', mri, engine=Brighter())
    assert not recwarn.list


def test_little_color_counts_where_there_is_no_noise(tmp_path, recwarn):
    marked = np.dstack([GREY]*3)
    marked[20:23, 20:25] = 255, 0, 0 # 15 pixels
    pale = (np.dstack([GREY]*3)*[1, .9, .85]).astype(np.uint8)
    mri = save(GREY, tmp_path/'mri.png')
    for a in (marked, pale):
        for ext in ('png', 'bmp', 'tif'):
            save(a, tmp_path/f'ct.{ext}')
            with pytest.warns(UserWarning, match=f'ct.{ext} is in colour'):
                fuse(tmp_path/f'ct.{ext}', mri, engine=Brighter())
    recwarn.clear()
    save(np.dstack([GREY]*3), tmp_path/'grey.jpg', quality=30)
    (tmp_path/'grey.jpg').rename(tmp_path/'named.png') # what it is decides, not its name
    marked[20, 20:27] = marked[21:23, 20:25] = 0 # no pixel of colour is left
    marked[0, :7, 0] ^= 255 # seven
    for a in (tmp_path/'named.png', save(marked, tmp_path/'ct.png')): fuse(a, mri, engine=Brighter())
    assert not recwarn.list


def test_color_in_a_set(tmp_path, recwarn):
    "Verify, training and evaluation say it, but not of visible images."
    for kind in ('CT', 'MRI', 'visible/train', 'infrared/train'):
        (tmp_path/kind).mkdir(parents=True)
        color = [GREY, COLOR, COLOR] if kind in ('MRI', 'visible/train') else [GREY]*3
        for i, a in enumerate(color): save(a, tmp_path/kind/f'100{i}.png')
    found = verify(tmp_path, 'CT', 'MRI')['problems']
    assert [p for p in found if 'colour' in p] == [
        f'{tmp_path}/MRI/1001.png and 1 more are in colour (99.8% of its pixels), which is read as grey']
    assert 'colour' not in str(verify(tmp_path, 'visible', 'infrared')['problems'])
    with pytest.warns(UserWarning, match='MRI holds images in colour') as said: FusionDataset(find_pairs(tmp_path))
    assert len(said) == 1
    recwarn.clear()
    pairs = llvip_pairs(tmp_path)
    for color in (True, False): FusionDataset(pairs, color=color)
    assert not recwarn.list


def test_names_in_two_unicode_forms(tmp_path):
    one, other = (normalize(form, 'Schädel') for form in ('NFC', 'NFD'))
    for kind, name in (('CT', one), ('MRI', other)):
        (tmp_path/kind).mkdir()
        save(GREY, tmp_path/kind/f'{name}.png')
    assert find_pairs(tmp_path) == [(one, tmp_path/'CT'/f'{one}.png', tmp_path/'MRI'/f'{other}.png')]
    assert not any('twin' in p for p in verify(tmp_path)['problems'])
    save(GREY, tmp_path/'MRI'/f'{one}.png')
    with pytest.raises(ValueError, match='the same name'): find_pairs(tmp_path)


def test_places_and_names_that_cannot_be_meant(here, tmp_path):
    for kind in ('CT', 'MRI'):
        (tmp_path/kind).mkdir()
        save(GREY if kind == 'CT' else GREY[::-1], tmp_path/kind/'a.tif')
    (tmp_path/'link').symlink_to('MRI')
    for out in ('CT', 'MRI', 'CT/../MRI/', 'link'):
        code, _, err = here('medfusion_fuse', 'CT', 'MRI', '-o', out)
        assert code == 2 and 'is one of the two folders' in one_line(err), err
    for option in ('--out', '--weights'):
        code, _, err = here('medfusion_fuse', 'CT/a.tif', 'MRI/a.tif', option, '')
        assert code == 2 and f'{option} is empty' in one_line(err), err
    assert sorted(p.name for p in tmp_path.rglob('*.*')) == ['a.tif', 'a.tif']


def png(width, height, *extra):
    head = struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(b'\0'*(GREY.shape[1] + 1)*GREY.shape[0])
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + b''.join(extra) + chunk(b'IDAT', rows) + chunk(b'IEND', b'')


def refused(): # file -> part of the message
    bomb = zlib.compress(bytes(2**26))
    yield 'claim.png', png(30000, 20000), '20000 x 30000'
    yield 'claim.tif', tiff(GREY, t256=(4, [30000]), t257=(4, [20000])), '20000 x 30000'
    yield 'profile.png', png(64, 64, chunk(b'iCCP', b'x\0\0' + bomb)), 'profile.png'
    yield 'text.png', png(64, 64, chunk(b'zTXt', b'x\0\0' + bomb)), 'text.png'
    yield 'white.tif', tiff(GREY.astype(np.uint16), t262=(3, [0])), '0 is white'
    yield 'strips.tif', tiff(GREY, t279=(4, [1024, 1024, 512, 1024])), 'truncated'
    yield 'beyond.tif', tiff(GREY, t273=(4, [8, 1032, 2056, 10**6])), 'truncated'
    for name, value in (('page.gif', 'GIF'), ('page.webp', 'WebP')):
        file = io.BytesIO()
        Image.fromarray(GREY).save(file, name[5:])
        yield name, file.getvalue(), value
    for mode in ('CMYK', 'LAB'):
        file = io.BytesIO()
        Image.fromarray(COLOR).convert(mode).save(file, 'TIFF')
        yield f'{mode}.tif', file.getvalue(), f'stored as {mode}'
    pages = [Image.fromarray(GREY + np.uint8(i)) for i in range(3)]
    for kind in ('PNG', 'TIFF'):
        file = io.BytesIO()
        pages[0].save(file, kind, save_all=True, append_images=pages[1:])
        yield f'pages.{kind}', file.getvalue(), 'holds 3 pages'


def test_what_is_refused(tmp_path):
    for name, data, why in refused():
        (tmp_path/name).write_bytes(data)
        with pytest.raises(ValueError, match=why) as e: read_image(tmp_path/name)
        assert name in str(e.value) and '\n' not in str(e.value)
    assert MAX_PIXELS >= 4000*4000


def test_cut_and_damaged_files(tmp_path, capfd):
    "No part of a picture passes for the whole; nothing is printed meanwhile."
    rng, files = random.Random(0), {}
    save(GREY, tmp_path/'a.bmp')
    for name, options in {'a.png': {}, 'a.tif': {}, 'lzw.tif': dict(compression='tiff_lzw'), 'a.jpg': {},
                          'deflate.tif': dict(compression='tiff_adobe_deflate'), 'p.jpg': dict(progressive=True),
                          'r.jpg': dict(restart_marker_rows=1)}.items(): save(GREY, tmp_path/name, **options)
    cv2.imwrite(str(tmp_path/'deep.png'), COLOR.astype(np.uint16)*257)
    cv2.imwrite(str(tmp_path/'deep.tif'), COLOR.astype(np.uint16)*257)
    for p in tmp_path.iterdir(): files[p.name] = p.read_bytes()
    for name, data in files.items():
        whole = decode_image(tmp_path/name, None)
        cut = [data[:rng.randrange(1, len(data) - 20)] for _ in range(8)]
        if name.endswith('jpg'): cut += [data[:len(data)*k//8] + b'\xff\xd9' for k in (5, 6, 7)]
        for piece in cut:
            (tmp_path/name).write_bytes(piece)
            with pytest.raises(ValueError, match=name): decode_image(tmp_path/name)
        for _ in range(15):
            changed = bytearray(data)
            for _ in range(rng.randint(1, 3)): changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            (tmp_path/name).write_bytes(changed)
            try: same = np.array_equal(decode_image(tmp_path/name, None), whole)
            except ValueError as e: assert name in str(e) and '\n' not in str(e)
            else: assert same or not name.endswith('png'), 'a checksum of a PNG was not looked at'
    assert capfd.readouterr().err == ''


def test_dollars_and_control_characters(here, tmp_path):
    names = '$x_{$1', 'b\x1b[31m'
    for kind in ('CT', 'MRI', 'other'):
        for n in names:
            (tmp_path/kind).mkdir(exist_ok=True)
            save(GREY, tmp_path/kind/f'{n}.png')
    assert here('medfusion_data', 'verify', '.', '--figure', '../worst.png')[0] == 0
    code, out, err = here('medfusion_evaluate', '.', '--split', 'all', '--patient', '(.+)', '--no-findings',
                          '--weights', 'compact', '--method', '$m_{$=other', '--show', names[0])
    assert code == 0, err
    (tmp_path/'CT'/f'{names[1]}.png').unlink()
    code, out, err = here('medfusion_fuse', 'CT', 'MRI', '-o', 'f')
    assert code == 2 and r'b\x1b[31m' in one_line(err) and '\x1b' not in err
