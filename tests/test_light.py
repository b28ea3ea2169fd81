"""The light wing stands without what only the extra `train` installs: its modules import, a pair and a volume
are fused, and what needs more says so in one line."""
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIGHT = 'core data phantom engine volume register datasets nuclear color findings functional study fuse report bids cohort view'.split()
TRAINING = ('torch torchvision accelerate safetensors huggingface_hub onnx onnxscript pandas pywt seaborn '
            'torchmetrics')
WITHOUT_TORCH = f'TRAINING = {TRAINING.split()}' + """
import sys
class Missing: # as where these packages are not installed
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in TRAINING:
            raise ModuleNotFoundError(f'no module named {name}', name=name)
sys.meta_path.insert(0, Missing())
"""
FUSE = """
from pathlib import Path
import numpy as np
from medfusion_nb import align, fuse, fuse_study, load_engine, phantom_pair, read_volume, write_study
from medfusion_nb.phantom import make_grid
from medfusion_nb.volume import phantom_study

class Brighter: # an engine like any other
    window, batch_size = (40., 80.), 4
    def __call__(self, ct, mri): return np.maximum(np.stack(ct), np.stack(mri)).astype(np.float32)
    def attention(self, ct, mri): return {}

head = phantom_pair(128)
fused = fuse(head.ct, head.mri, 'fused.png', engine=Brighter())
assert np.array_equal(fused, np.maximum(head.ct, head.mri)) and Path('fused.png').is_file()
assert fuse(head.ct, head.mri)[head.masks['calcification']].min() > .3
phantom_study('study', size=(64, 64, 20), spacing=(3.6, 3.6, 8.),
              mri_grid=make_grid((64, 64, 24), (3.6, 3.6, 7.)))
scans = read_volume('study', 'CT'), read_volume('study', 'MR')
written = write_study(fuse_study(align(*scans, register='never'), load_engine()), 'out')
assert {'fused.nii.gz', 'dicom', 'medfusion.json'} <= {p.name for p in written}
"""


def python(code, cwd):
    "A Python process of its own must end well."
    done = subprocess.run([sys.executable, '-c', code], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize('module', LIGHT)
def test_a_light_module_is_imported_without_torch(module, tmp_path):
    python(f'{WITHOUT_TORCH}import medfusion_nb.{module}', tmp_path)


def test_pair_and_volume_are_fused_without_torch(tmp_path): python(WITHOUT_TORCH+FUSE, tmp_path)


def test_what_needs_more_says_so(tmp_path):
    "In Python an error that names the extra; from a shell one line and exit code 2."
    for name in ('FusionNet', 'evaluate'):
        code = f"""{WITHOUT_TORCH}
try: from medfusion_nb import {name}
except ModuleNotFoundError as e: assert "{name} needs " in str(e) and "'medfusion_nb[train]'" in str(e), e
else: raise AssertionError"""
        python(code, tmp_path)
    (tmp_path/'sitecustomize.py').write_text(WITHOUT_TORCH)
    env = dict(os.environ, PYTHONPATH=os.pathsep.join([str(tmp_path), os.environ.get('PYTHONPATH', '')]))
    fuse = 'medfusion_fuse', '--weights'
    for words in (['medfusion_pretrain'], ['medfusion_export', 'compact'], ['medfusion_fuse', '--bf16'],
                  [*fuse, 'full'], [*fuse, 'compact', '--attention']):
        program = str(Path(sys.executable).parent/words[0]), *words[1:]
        done = subprocess.run(program, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 2 and done.stderr.count('\n') == 1, done.stderr
        assert "pip install 'medfusion_nb[train]'" in done.stderr
        assert not [*tmp_path.glob('*.png')]


# of a run that fuses two pictures into one, the modules that it does not use
UNUSED = 'SimpleITK pydicom nibabel scipy matplotlib IPython ipywidgets pandas torch onnx'


def test_a_run_loads_what_it_uses(tmp_path):
    "Two pictures: ONNX Runtime and OpenCV. Each library more costs everyone's time."
    code = """
from medfusion_nb.phantom import phantom_pair
from medfusion_nb.data import write_image
head = phantom_pair(64)
for kind, img in (('ct', head.ct), ('mri', head.mri)): write_image(kind + '.png', img)
"""
    python(code, tmp_path)
    code = f"""
import sys
from medfusion_nb.core import run_script
run_script(['medfusion_fuse', 'ct.png', 'mri.png', '-o', 'fused.png'])
assert not {{*'{UNUSED}'.split()}} & {{*sys.modules}}, {{*'{UNUSED}'.split()}} & {{*sys.modules}}
"""
    python(code, tmp_path)


def test_modules_import_from_lower_numbers_only():
    "The number of a notebook is its place in the order of import."
    pages = sorted(p.stem for p in (ROOT/'nbs').glob('[0-9]*.ipynb')) # 000_core, 00_data, 00a_phantom, ...
    order = [name.split('_', 1)[1] for name in pages]
    for i, name in enumerate(order):
        text = (ROOT/'medfusion_nb'/f'{name}.py').read_text(encoding='utf-8')
        used = set(re.findall(r'^from \.(\w+) import', text, re.M))
        assert used <= set(order[:i]), (name, used-set(order[:i]))
