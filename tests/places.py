"""Commands that are stopped at seeded places: `python places.py FOLDER N SEED` prints counts as JSON.

One process imports everything and runs each command once. Then it forks: each child runs a command and is
killed, stopped, or refused the disk at the k-th event of its file system (`sys.addaudithook`), or after so
many bytes of a file (`RLIMIT_FSIZE`). What it leaves is looked at; then the same command runs undisturbed.
"""
import errno
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import threading
import time
import zipfile
from collections import Counter
from contextlib import redirect_stdout
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import nibabel
import numpy as np
import pandas as pd
import pydicom
import SimpleITK as sitk
import torch

from medfusion_nb.core import one_line_errors
from medfusion_nb.data import write_image
from medfusion_nb.datasets import ImageSet, fetch
from medfusion_nb.evaluate import medfusion_evaluate
from medfusion_nb.fuse import medfusion_fuse
from medfusion_nb.model import read_checkpoint
from medfusion_nb.phantom import like, make_grid, phantom_pair
from medfusion_nb.pretrain import medfusion_pretrain
from medfusion_nb.register import save_transform
from medfusion_nb.volume import write_nifti_image, write_original

EVENTS = {'open', 'os.mkdir', 'os.rename', 'os.link', 'os.remove', 'os.rmdir', 'os.chmod'}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
FAULTS = ['kill', 'term', 'int', 'full', 'size', 'torn', 'readonly']
SIGNS = dict(kill=signal.SIGKILL, term=signal.SIGTERM, int=signal.SIGINT)
IMAGES = ImageSet('Few', '2', '', 'any', 'nobody', 'nowhere', folder='few', files=r'(?P<kind>vi|ir)/(?P<name>.+)')


def volumes(root):
    "CT and MRI as DICOM series of 8 slices, a segmentation, and a transform that moves nothing."
    r = np.hypot(*np.mgrid[-1:1:32j, -1:1:32j])
    slices = dict(CT=np.select([r < .7, r < .8], [40, 900], -1000), MR=np.select([r < .4, r < .7], [600, 300], 0))
    grid = make_grid((32, 32, 8), (6., 6., 12.))
    for kind, a in slices.items(): write_original(like(np.stack([a]*8).astype(np.float32), grid), root/'study'/kind, kind)
    save_transform(sitk.Euler3DTransform(), root/'t.tfm')
    labels = like(np.stack([r < .4]*8).astype(np.uint8), grid)
    write_nifti_image(sitk.GetArrayViewFromImage(labels), labels, root/'labels.nii.gz')


def inputs(root):
    "Images, volumes, a set to fetch, pairs to train on and to evaluate: all tiny."
    head = phantom_pair(48, seed=1)
    for i in range(2):
        for kind, img in (('CT', head.ct), ('MRI', head.mri)):
            write_image(root/'images'/kind/f'{i}.png', np.roll(img, 3*i, 1))
    for split, n in (('train', 2), ('test', 1)):
        for i in range(n):
            for kind, img in (('visible', head.mri), ('infrared', head.ct)):
                write_image(root/'llvip'/kind/split/f'{i}.png', np.roll(img, 5*i, 1))
    volumes(root)
    data = io.BytesIO()
    with zipfile.ZipFile(data, 'w') as z:
        for kind in ('vi', 'ir'):
            for i in range(2): z.write(root/'images'/'CT'/f'{i}.png', f'few-main/{kind}/{i}.png')
    return data.getvalue()


def serve(data):
    "Address of a server of one file."
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header('Content-Length', str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        def log_message(self, *args): pass
    server = ThreadingHTTPServer(('127.0.0.1', 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f'http://127.0.0.1:{server.server_port}/few.zip'


def fetch_few(url):
    shutil.rmtree('out/few', ignore_errors=True)
    with one_line_errors('medfusion_data'): fetch('Few', 'out', True, sets=dict(Few=IMAGES._replace(url=url)), pause=0)


def commands(root, url):
    "Name -> what runs in the folder of a case and writes into `out` there."
    def fuse(*args): return partial(medfusion_fuse, [*map(str, args), '--force', '--weights', 'compact'])
    study, images = (root/'study/CT', root/'study/MR'), (root/'images/CT', root/'images/MRI')
    train = [str(root/'llvip'), '--epochs', '2', '--crop', '32', '--network', 'compact', '--batch-size', '2',
             '--out', 'out', '--lr', '1e-3']
    return dict(
        images=fuse(*images, '-o', 'out', '--figure'),
        file=fuse(*study, '-o', 'out/a.nii.gz', '--transform', root/'t.tfm', '--labels', root/'labels.nii.gz'),
        folder=fuse(*study, '-o', 'out', '--register', 'never', '--png', '--contact-sheet'),
        training=partial(medfusion_pretrain, train),
        fetching=partial(fetch_few, url),
        evaluating=partial(medfusion_evaluate, [str(root/'images'), '--split', 'all', '--patient', '(.+)', '--weights',
                                                'compact', '--no-findings', '--out', 'out', '--batch-size', '2']))


class Fault:
    "An audit hook that counts what is done to files below a folder, and does harm at the k-th event."
    def __init__(self, kind, k): self.kind, self.k, self.n = kind, k, 0

    def __call__(self, event, args):
        if event not in EVENTS or (event == 'open' and not (args[2] or 0) & WRITES): return
        path = os.fsdecode(args[0]) if isinstance(args[0], (str, bytes, os.PathLike)) else ''
        if path.startswith(('/dev', '/proc')) or (os.path.isabs(path) and not path.startswith(os.getcwd())): return
        self.n += 1
        if self.kind in SIGNS and self.n == self.k: os.kill(os.getpid(), SIGNS[self.kind])
        made = event in ('open', 'os.mkdir', 'os.link')
        if self.kind == 'full' and self.n >= self.k and made: raise OSError(errno.ENOSPC, 'No space left on device')
        if self.kind == 'readonly' and self.n >= self.k: raise OSError(errno.EROFS, 'Read-only file system')


def forked(run, place, kind=None, k=0):
    "Exit code (negative: a signal), standard error, and number of events of a command in a child."
    read, write = os.pipe()
    lines, said = os.pipe() # a file would fall under the limit
    if (pid := os.fork()) == 0:
        code = 99
        try:
            os.chdir(place)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(said, 2)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL if kind == 'torn' else signal.SIG_IGN)
            if kind in ('size', 'torn'): resource.setrlimit(resource.RLIMIT_FSIZE, (k, resource.RLIM_INFINITY))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            fault = Fault(kind, k)
            sys.addaudithook(fault)
            try:
                run()
                code = 0
            except SystemExit as e: code = e.code or 0
            except BaseException:
                import traceback
                traceback.print_exc()
            fault.kind = None
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            os.write(write, str(fault.n).encode())
            sys.stderr.flush()
        finally: os._exit(code)
    os.close(write)
    os.close(said)
    with os.fdopen(lines) as f: err = f.read()
    with os.fdopen(read) as f: n = f.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), err, int(n or 0)


def content(path):
    "What a file says, as far as two runs agree about it; raises for a torn one."
    data = path.read_bytes()
    if path.suffix == '.png':
        assert cv2.imdecode(np.frombuffer(data, np.uint8), -1) is not None, path
        return data
    if path.name.endswith('.nii.gz'): return np.asarray(nibabel.load(path).dataobj).tobytes()
    if path.suffix == '.json' or path.suffix == '.lock': return json.dumps(json.loads(data))
    if path.suffix == '.tfm': return sitk.ReadTransform(str(path)).GetParameters()
    if path.suffix == '.dcm': return pydicom.dcmread(path).PixelData
    if path.suffix == '.csv': return len(pd.read_csv(path)), data
    if path.suffix == '.pth':
        state = read_checkpoint(path)
        return repr(state.get('history')), [(k, v.numpy().tobytes()) for k, v in state['model_state_dict'].items()]
    raise AssertionError(f'what is {path}?')


def seen(place):
    "Visible files of a case: name -> content; and the hidden ones."
    files = [p for p in sorted((place/'out').rglob('*')) if p.is_file()] if (place/'out').exists() else []
    visible = [p for p in files if not any(part.startswith('.') for part in p.relative_to(place).parts)]
    hidden = [str(p.relative_to(place)) for p in place.rglob('.*')]
    return {str(p.relative_to(place)): content(p) for p in visible}, hidden


def check(name, kind, k, run, place, before, whole):
    "One place: what happened, in words; raises `AssertionError` for what must not be."
    code, err, _ = forked(run, place, kind, k)
    there, hidden = seen(place)
    said = f'{name} {kind} {k}: exit code {code}, {err[-1500:]}'
    assert 'Traceback' not in err, said
    # the lines of log and progress are of no matter: an error is the last one
    expected = dict(kill={-9}, term={143}, int={130}, full={2}, size={2}, torn={-signal.SIGXFSZ}, readonly={2})[kind]
    assert code in expected | {0}, said
    if kind in ('term', 'int', 'full', 'size'): # all or nothing, and nothing hidden but what is to be resumed
        kept = [h for h in hidden if not h.endswith(('.zip.part', '.zip.part.version'))]
        assert not kept, (said, kept)
        if name != 'training': assert there in (before, whole), (said, sorted(there), sorted(before), sorted(whole))
    if code == 2: assert len(err.strip().splitlines()) == 1 and len(err) < 600, said
    what = {0: 'done', 2: 'refused'}.get(code, 'stopped')
    code, err, _ = forked(run, place)
    assert code == 0, f'{said}; and then {code}, {err[-1500:]}'
    now, hidden = seen(place)
    assert not hidden, (said, 'left after the next run', hidden)
    assert now.keys() == whole.keys(), (said, sorted(now), sorted(whole))
    differ = [f for f in whole if now[f] != whole[f]]
    assert not differ, (said, differ)
    return what


def main(root, n, seed):
    root, rng, counts = Path(root), random.Random(seed), Counter()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    sitk.ProcessObject.SetGlobalDefaultThreader('Platform')
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    url = serve(inputs(root))
    runs = commands(root, url)
    share = dict(images=.25, file=.2, folder=.2, training=.15, fetching=.15, evaluating=.05)
    began, failed = time.monotonic(), []
    for name, run in runs.items():
        places = max(round(n*share[name]), name != 'evaluating') # it takes long
        if not places: continue
        warm = root/f'warm_{name}'
        warm.mkdir()
        os.chdir(warm)
        with redirect_stdout(io.StringIO()): run() # what is loaded once is loaded
        shutil.rmtree(warm/'out')
        code, err, events = forked(run, warm)
        assert code == 0, (name, code, err)
        print(name, events, 'events', round(time.monotonic() - began, 1), 's', file=sys.stderr, flush=True)
        whole, _ = seen(warm)
        largest = max(p.stat().st_size for p in warm.rglob('*') if p.is_file())
        for i in range(places):
            kind = FAULTS[(i + len(name)) % len(FAULTS)] if n >= 50 else rng.choice(FAULTS)
            k = rng.randrange(largest) if kind in ('size', 'torn') else rng.randrange(1, events + 1)
            place = root/f'{name}_{i}'
            old = name in ('images', 'file', 'folder') and i % 2 == 1 # there is a result already
            if old: shutil.copytree(warm, place)
            else: place.mkdir()
            try: counts[f'{name} {kind} {check(name, kind, k, run, place, whole if old else {}, whole)}'] += 1
            except AssertionError as e: failed.append(str(e)[:2000])
            shutil.rmtree(place)
    print(json.dumps(dict(counts=counts, failed=failed, seconds=round(time.monotonic() - began, 1))))


if __name__ == '__main__': main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
