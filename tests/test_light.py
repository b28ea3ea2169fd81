"""The light wing stands without PyTorch: its modules import, and a pair and a volume are fused,
where torch cannot be imported."""
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIGHT = 'core data phantom volume register datasets findings study fuse view'.split()
WITHOUT_TORCH = """
import sys
class Missing: # as where these packages are not installed
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('torch', 'torchvision', 'accelerate', 'safetensors', 'huggingface_hub'):
            raise ModuleNotFoundError(f'no module named {name}', name=name)
sys.meta_path.insert(0, Missing())
"""
FUSE = """
from pathlib import Path
import numpy as np
from medfusion_nb import align, fuse, fuse_study, phantom_pair, read_volume, write_study
from medfusion_nb.phantom import make_grid
from medfusion_nb.volume import phantom_study

class Brighter: # an engine like any other
    window, batch_size = (40., 80.), 4
    def __call__(self, ct, mri): return np.maximum(np.stack(ct), np.stack(mri)).astype(np.float32)
    def attention(self, ct, mri): return {}

head = phantom_pair(128)
fused = fuse(head.ct, head.mri, 'fused.png', engine=Brighter())
assert np.array_equal(fused, np.maximum(head.ct, head.mri)) and Path('fused.png').is_file()
phantom_study('study', size=(64, 64, 20), spacing=(3.6, 3.6, 8.),
              mri_grid=make_grid((64, 64, 24), (3.6, 3.6, 7.)))
scans = read_volume('study', 'CT'), read_volume('study', 'MR')
written = write_study(fuse_study(align(*scans, register='never'), Brighter()), 'out')
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


def test_modules_import_from_lower_numbers_only():
    "The number of a notebook is its place in the order of import."
    pages = sorted(p.stem for p in (ROOT/'nbs').glob('[0-9]*.ipynb')) # 000_core, 00_data, 00a_phantom, ...
    order = [name.split('_', 1)[1] for name in pages]
    for i, name in enumerate(order):
        text = (ROOT/'medfusion_nb'/f'{name}.py').read_text(encoding='utf-8')
        used = set(re.findall(r'^from \.(\w+) import', text, re.M))
        assert used <= set(order[:i]), (name, used-set(order[:i]))
