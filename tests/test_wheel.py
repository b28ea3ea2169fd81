"""What is shipped: the wheel's contents, entry points and requirements,
and what a damaged copy of it says."""
import ast
import re
import shutil
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from email.parser import Parser
from pathlib import Path

import pytest
from conftest import one_line, start, together, tree
from test_light import LIGHT

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope='module')
def settings():
    parser = ConfigParser(delimiters=['='])
    parser.read(ROOT/'settings.ini', encoding='utf-8')
    return parser['DEFAULT']


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    "The wheel, unpacked; built from a copy, so that the tree stays as it is."
    tmp = tmp_path_factory.mktemp('wheel')
    keep = shutil.ignore_patterns('.git', 'nbs', 'tests', 'build', 'dist', '*.egg-info', '_proc', '_docs',
                                  '__pycache__', '.venv', 'runs')
    shutil.copytree(ROOT, tmp/'tree', ignore=keep)
    command = [sys.executable, '-m', 'build', '--wheel', '--outdir', tmp, tmp/'tree']
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout[-3000:] + built.stderr[-3000:]
    [file] = tmp.glob('*.whl')
    with zipfile.ZipFile(file) as z: z.extractall(tmp/'unpacked')
    return tmp/'unpacked'


def meta(wheel, name):
    [folder] = wheel.glob('*.dist-info')
    return (folder/name).read_text(encoding='utf-8')


def _source(wheel, module): return (wheel/'medfusion_nb'/f'{module}.py').read_text(encoding='utf-8')


def requirement(text):
    "Name and sorted versions of a requirement, however it is spelt."
    name, versions = re.fullmatch(r'\s*([\w.-]+)\s*(.*?)\s*', text).groups()
    wanted = sorted(v.strip() for v in versions.strip('()').split(',') if v)
    return re.sub(r'[-_.]+', '-', name).lower(), tuple(wanted)


def test_entry_points(wheel, settings):
    parser = ConfigParser()
    parser.read_string(meta(wheel, 'entry_points.txt'))
    wanted = dict(x.split('=') for x in settings['console_scripts'].split())
    assert dict(parser['console_scripts']) == wanted and len(wanted) == 8
    assert {*wanted.values()} == {'medfusion_nb.core:run_script'}
    for name in wanted: assert f"{name.removeprefix('medfusion_')}='" in _source(wheel, 'core'), name


def test_requirements(wheel, settings):
    m = Parser().parsestr(meta(wheel, 'METADATA'))
    runtime = [r for r in m.get_all('Requires-Dist') if 'extra ==' not in r]
    dev = [r.split(';')[0] for r in m.get_all('Requires-Dist') if re.search(r'extra == .dev.', r)]
    assert sorted(map(requirement, runtime)) == sorted(map(requirement, settings['requirements'].split()))
    of_tests = 'dev', 'train', 'cohort', 'bids'
    wanted = [r for k in of_tests for r in settings[f'{k}_requirements'].split()]
    assert sorted(map(requirement, dev)) == sorted(map(requirement, wanted))
    tools = 'nbdev', 'execnb', 'ghapi', 'pytest'
    assert not any(requirement(r)[0] in tools for r in runtime), 'tools are for the dev extra only'
    assert (m['Requires-Python'], m['Version']) == (f">={settings['min_python']}", settings['version'])


def imported(files):
    "Distributions that modules import, wherever they do."
    distribution = {'bids': 'pybids', 'cv2': 'opencv-python-headless', 'pywt': 'pywavelets', 'PIL': 'pillow'}
    nodes = [n for f in files for n in ast.walk(ast.parse(f.read_text(encoding='utf-8')))]
    names = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
    names |= {n.module for n in nodes if isinstance(n, ast.ImportFrom) and not n.level}
    names = {n.split('.')[0] for n in names} - set(sys.stdlib_module_names) - {'medfusion_nb'}
    return {distribution.get(n, n).lower().replace('_', '-') for n in names}


def test_imports_are_required(wheel, settings):
    "The packages that the modules import are the requirements and those of the extras, and no others."
    extras = 'requirements', 'train_requirements', 'cohort_requirements', 'bids_requirements'
    base, train, cohort, bids = ({requirement(r)[0] for r in settings[k].split()} for k in extras)
    by_torch, by_dask = {'onnx', 'onnxscript'}, {'bokeh'} # which import them
    assert imported((wheel/'medfusion_nb').glob('*.py')) == base | train - by_torch | cohort - by_dask | bids
    assert imported(wheel/'medfusion_nb'/f'{m}.py' for m in LIGHT) - train - cohort - bids == base


def test_contents(wheel):
    files = {p.relative_to(wheel).as_posix() for p in wheel.rglob('*') if p.is_file()}
    top = {f.split('/')[0] for f in files}
    assert len(top) == 2 and 'medfusion_nb' in top, top
    weights = ('model.int8.safetensors', 'config.json', 'README.md',
               'compact/model.float32.safetensors', 'compact/model.onnx', 'compact/config.json')
    assert {f'medfusion_nb/weights/{f}' for f in weights} <= files
    modules = {p.name for p in (ROOT/'medfusion_nb').glob('*.py')}
    assert {f'medfusion_nb/{m}' for m in modules} <= files and '_modidx.py' in modules
    assert any(f.endswith('LICENSE') for f in files)
    assert sum((wheel/f).stat().st_size for f in files if 'weights/' in f) <= 51e6


def test_damaged_weights_are_named(wheel, tmp_path):
    """Other numbers in the weights, no weights, half a configuration:
    each ends in one line that names the file."""
    def corrupt(f): f.write_bytes(f.read_bytes()[:-1000] + bytes(1000))
    def cut(f): f.write_bytes(f.read_bytes()[:100])
    damages = [('model.int8.safetensors', corrupt), ('model.int8.safetensors', Path.unlink),
               ('config.json', cut), ('compact/model.onnx', corrupt)]
    processes = {}
    for i, (name, damage) in enumerate(damages):
        site, cwd = tmp_path/f'site{i}', tmp_path/f'cwd{i}'
        shutil.copytree(wheel/'medfusion_nb', site/'medfusion_nb')
        damage(site/'medfusion_nb'/'weights'/name)
        cwd.mkdir()
        weights = 'compact' if 'compact' in name else 'full'
        processes[i] = start('medfusion_fuse', '--weights', weights, cwd=cwd, env=dict(PYTHONPATH=str(site)))
    for i, (code, out, err) in together(**{str(k): v for k, v in processes.items()}):
        name = damages[int(i)][0]
        assert (code, out) == (2, ''), (name, err)
        assert f'site{i}/medfusion_nb/weights/{name}' in one_line(err), err
        assert not tree(tmp_path/f'cwd{i}')
