"""BIDS in and out: the BIDS validator finds no error in a dataset of phantoms and in what is written with the
names and sidecars of `07b_bids`, and reading a dataset changes nothing in it."""
import json
import os
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('bids', reason="pybids is not installed: pip install 'medfusion_nb[bids]'")

from medfusion_nb.bids import (BIDSIGNORE, README, derivative_names, describe_derivative, find_bids, other_names,
                               phantom_bids, sidecar)
from medfusion_nb.phantom import make_grid
from medfusion_nb.volume import write_nifti_image

VALIDATOR = shutil.which('bids-validator-deno', path=str(Path(sys.executable).parent)) \
    or shutil.which('bids-validator-deno')
validated = pytest.mark.skipif(VALIDATOR is None,
                               reason='the BIDS validator is not installed: pip install bids-validator-deno')
SMALL = dict(size=(24, 24, 12), spacing=(9.6, 9.6, 15.), noise=False)
SAID = dict(window=[40., 80.], alignment='registration', status='trusted', spacing_mm=[1., 1., 1.])


def listed(said): # severity, code, detail, file
    return [(i['severity'], i['code'], i.get('subCode'), i.get('location')) for i in said['issues']['issues']]


def validate(folder, *options):
    "What the validator says. Its schema is the one that it brings along; it needs no network."
    done = subprocess.run([VALIDATOR, str(folder), '--format', 'json', *options], capture_output=True, text=True)
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


def issues(folder): return listed(validate(folder))


def errors(folder): return [i for i in issues(folder) if i[0] == 'error']


def warnings(folder): return {i[2] or i[1] for i in issues(folder) if i[0] == 'warning'}


@pytest.fixture(scope='module')
def heads(tmp_path_factory):
    "Datasets of the ways in which people name a CT, and with and without sessions."
    folder = tmp_path_factory.mktemp('bids')
    ways = dict(sessions=dict(preop=['T1w', 'T2w', 'FLAIR'], postop=['ct']), anat={'': ['CT', 'T1w']},
                both={'1': ['ct', 'T2w'], '2': ['ct', 'FLAIR']})
    return {k: phantom_bids(folder/k, 1, sessions, **SMALL) for k, sessions in ways.items()}


def write_derivative(raw, out, grid):
    "What a run leaves of all cases, with a tiny volume in place of the fused one."
    def write(name, text):
        (out/name).parent.mkdir(parents=True, exist_ok=True)
        (out/name).write_text(text)
    write('dataset_description.json', json.dumps(describe_derivative(raw, out)))
    for name, text in {'.bidsignore': BIDSIGNORE, 'README': README, 'cohort.html': '<p>', 'cohort.tsv': 'a\tb\n',
                       'cohort.json': '{}', 'failed/sub-9_T1w/medfusion.json': '{}'}.items(): write(name, text)
    cases, left_out = find_bids(raw)
    assert cases and not left_out and not [c.error for c in cases if c.error]
    for case in cases:
        names = derivative_names(case, grid)
        write(names['sidecar'], json.dumps(sidecar(case, SAID | dict(options=dict(grid=grid)))))
        write(names['transform'], '#Insight Transform File V1.0\n')
        write(names['page'], '<p>')
        write(names['record'], '{}')
        write_nifti_image(np.zeros((2, 4, 4), np.int16), make_grid((4, 4, 2), (1, 1, 1)), out/names['fused'])
    return cases


@validated
def test_phantoms_are_bids(heads):
    for name, folder in heads.items(): assert not errors(folder), (name, errors(folder))


@validated
def test_a_ct_without_bidsignore_is_an_error(heads, tmp_path):
    "So the lines of .bidsignore are needed, and the validator is at work."
    shutil.copytree(heads['both'], tmp_path/'raw')
    (tmp_path/'raw'/'.bidsignore').unlink()
    assert {'NOT_INCLUDED'} == {code for _, code, *_ in errors(tmp_path/'raw')}


@validated
@pytest.mark.parametrize('grid', ['ct', 'mri', '1'])
@pytest.mark.parametrize('way', ['sessions', 'anat', 'both'])
def test_derivative_is_bids(heads, tmp_path, way, grid):
    "Beside the dataset and within it."
    raw = shutil.copytree(heads[way], tmp_path/'raw')
    for out in (tmp_path/'fused', raw/'derivatives'/'medfusion_nb'):
        cases = write_derivative(raw, out, grid)
        assert not errors(out), errors(out)
        assert warnings(out) <= {'TOO_FEW_AUTHORS', 'HEDVersion'}, warnings(out)
    assert not errors(raw), errors(raw)
    names = [n for c in cases for n in (*derivative_names(c, grid).values(), *other_names(c, grid))]
    assert len({*names}) == len(names)
    assert find_bids(raw)[0] == cases # the derivative within is no input


@validated
def test_both_datasets_at_once(heads, tmp_path):
    """With --recursive the validator finds the derivative within the dataset. Version 3.0.2 then does not heed its
    .bidsignore, so there may be errors, but only of files that are named in it."""
    raw = shutil.copytree(heads['sessions'], tmp_path/'raw')
    cases = write_derivative(raw, raw/'derivatives'/'medfusion_nb', 'ct')
    said = validate(raw, '--recursive')
    inner, = said['derivativesSummary'].values()
    assert not [i for i in listed(said) if i[0] == 'error']
    patterns = [p if '*' in p else f'{p}*' for p in BIDSIGNORE.split()]
    wrong = {location.lstrip('/') for severity, *_, location in listed(inner) if severity == 'error'}
    other = {w for w in wrong if not any(fnmatch(w, p) for p in patterns)}
    assert not other, other
    assert not wrong & {derivative_names(c)[k] for c in cases for k in ('fused', 'sidecar')}


@validated
def test_derivative_of_names_with_all_entities(heads, tmp_path):
    raw = shutil.copytree(heads['anat'], tmp_path/'raw')
    anat = raw/'sub-01'/'anat'
    for ending in ('.nii.gz', '.json'):
        name = f'sub-01_acq-a_ce-b_rec-c_run-02_echo-1_part-mag_chunk-3_T1w{ending}'
        (anat/f'sub-01_T1w{ending}').rename(anat/name)
    (anat/name).write_text(json.dumps(dict(EchoTime=.01)))
    assert not errors(raw), errors(raw)
    for grid in ('ct', 'mri', '1'):
        write_derivative(raw, tmp_path/f'fused_{grid}', grid)
        assert not errors(tmp_path/f'fused_{grid}'), errors(tmp_path/f'fused_{grid}')


@validated
def test_the_validator_minds_what_is_left_out(heads, tmp_path):
    "Each of the required things is one: without it there is an error."
    out = tmp_path/'fused'
    case, *_ = write_derivative(heads['anat'], out, 'ct')
    beside = out/derivative_names(case)['sidecar']
    said = json.loads(beside.read_text())
    for key in ('SkullStripped', 'SpatialReference'):
        beside.write_text(json.dumps({k: v for k, v in said.items() if k != key}))
        assert errors(out), key
    beside.write_text(json.dumps(said))
    assert not errors(out)
    (out/'.bidsignore').unlink()
    assert {Path(e[3]).suffix for e in errors(out)} >= {'.html', '.txt', '.json'}, errors(out)


def test_reading_changes_nothing(heads, tmp_path, monkeypatch):
    "No file is written, neither into the dataset nor where the command runs; a dataset may be read-only."
    monkeypatch.chdir(tmp_path)
    def seen(): return {p: (p.stat().st_mtime_ns, p.stat().st_size) for k in heads for p in heads[k].rglob('*')}
    before = seen()
    for folder in heads.values(): assert find_bids(folder)[0]
    assert seen() == before and not os.listdir(tmp_path)


def test_result_names_no_place_of_this_machine(heads, tmp_path):
    raw = heads['sessions']
    for out in (tmp_path/'fused', raw/'derivatives'/'medfusion_nb', raw.parent/'fused', Path('/elsewhere/fused')):
        said = json.dumps([describe_derivative(raw, out), *(sidecar(c, SAID) for c in find_bids(raw)[0])])
        assert str(tmp_path) not in said and raw.parent.name not in said, said


def test_relative_folder(heads, monkeypatch):
    "A dataset named from within: its cases are whole paths, which processes elsewhere can open."
    monkeypatch.chdir(heads['anat'].parent)
    case, = find_bids('anat')[0]
    assert case.ct.is_absolute() and case.mri.is_file() and (case.place, case.alone) == ('sub-01/anat', True)
    monkeypatch.chdir(heads['anat'])
    assert find_bids('.')[0] == [case]
