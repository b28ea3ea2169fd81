"""Builds the page "Try it" of the docs into a new folder: python .ci/site.py _docs/try_it

The page of nbs/try_it, what it loads of two npm packages (`npm ci` compares their sha512 with those of
package-lock.json), the compact network, and a phantom as two pictures and as two volumes.
"""
import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import SimpleITK as sitk

from medfusion_nb.data import write_image
from medfusion_nb.phantom import phantom_pair, phantom_volume
from medfusion_nb.volume import write_nifti_image

ROOT = Path(__file__).resolve().parents[1]
PAGE, NETWORK = ROOT/'nbs'/'try_it', ROOT/'medfusion_nb'/'weights'/'compact'/'model.onnx'
LOADED = { # of npm packages -> its name here
    'onnxruntime-web/dist/ort.wasm.bundle.min.mjs': 'ort.js', # one thread, and no GPU
    'onnxruntime-web/dist/ort-wasm-simd-threaded.wasm': 'ort-wasm-simd-threaded.wasm',
    '@niivue/niivue/dist/index.js': 'niivue.js'}


def check_lock():
    "Raises `ValueError` for a version that is not exact, and a package without its hash."
    wanted = json.loads((PAGE/'package.json').read_text(encoding='utf-8'))['dependencies']
    packages = json.loads((PAGE/'package-lock.json').read_text(encoding='utf-8'))['packages']
    for name, version in wanted.items():
        if packages[f'node_modules/{name}']['version'] != version:
            raise ValueError(f'package.json: {name} {version} is not what package-lock.json has')
    for name, package in packages.items():
        if name and not package.get('integrity', '').startswith('sha512-'):
            raise ValueError(f'package-lock.json: {name} has no sha512')


def copy_packages(out):
    "What the page loads of the npm packages."
    with TemporaryDirectory() as tmp:
        for name in ('package.json', 'package-lock.json'): shutil.copy(PAGE/name, tmp)
        options = '--ignore-scripts', '--omit=optional', '--prefer-offline', '--no-audit', '--no-fund'
        subprocess.run(['npm', 'ci', *options], cwd=tmp, check=True, stdout=sys.stderr)
        for source, name in LOADED.items(): shutil.copyfile(Path(tmp)/'node_modules'/source, out/name)


def draw_phantoms(out):
    "A CT and an MRI, as pictures (the CT windowed) and as volumes."
    head = phantom_pair(256)
    write_image(out/'phantom_ct.png', head.ct)
    write_image(out/'phantom_mri.png', head.mri)
    volumes = phantom_volume((128, 128, 45))
    for name, volume in (('ct', volumes.ct), ('mri', volumes.mri)):
        write_nifti_image(sitk.GetArrayFromImage(volume), volume, out/f'phantom_{name}.nii.gz')


def build(
    out, # folder that does not exist yet
):
    "Builds the page; raises `FileNotFoundError` without the network, `CalledProcessError` where npm fails."
    check_lock()
    if not NETWORK.is_file(): raise FileNotFoundError(f'{NETWORK} is not there: export the compact network')
    shutil.copytree(PAGE, out, ignore=shutil.ignore_patterns('package*.json', 'node_modules'))
    shutil.copyfile(ROOT/'nbs'/'logo.svg', out/'logo.svg')
    shutil.copyfile(NETWORK, out/'model.onnx')
    copy_packages(out)
    draw_phantoms(out)
    files = [p.read_bytes() for p in out.iterdir()]
    whole, packed = (sum(map(len, data))/1e6 for data in (files, map(gzip.compress, files)))
    print(f'{out}: {len(files)} files, {whole:.1f} MB, {packed:.1f} MB as a server compresses them')


if __name__ == '__main__': build(Path(sys.argv[1]))
