"""Small inputs as public bug reports describe them: read right, or refused in one line that names the file.
They stand beside the project, in shared/cases; where that folder is not, these tests are skipped."""
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from conftest import one_line, run

from medfusion_nb.data import decode_image, read_image
from medfusion_nb.fuse import load_engine
from medfusion_nb.model import load_network
from medfusion_nb.study import align, fuse_study, write_study
from medfusion_nb.volume import find_series, read_volume

ROOT = Path(__file__).resolve().parents[1]
DATA = os.environ.get('MEDFUSION_DATA')
CASES = (Path(DATA).resolve().parent if DATA else ROOT.parent/'shared')/'cases'
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason='no folder shared/cases')


def voxels(path, **kwargs):
    "Values of a volume, first axis across the slices."
    return sitk.GetArrayFromImage(read_volume(path, **kwargs).image)


def refused(function, *args, **kwargs):
    "The one line with which a function refuses its input."
    with pytest.raises((ValueError, OSError)) as found: function(*args, **kwargs)
    line = str(found.value)
    assert len(line) < 700, line
    return line


def test_missing_slices_are_refused(here, tmp_path):
    "Nine slices of a 1-mm series; `--allow-gaps` goes on, and says where they are missing."
    case = CASES/'dicom_missing_thin'
    fuse = 'medfusion_fuse', case/'CT', case/'MR', '--register', 'never', '--out', 'fused'
    code, _, err = here(*fuse)
    assert code == 2 and 'missing' in one_line(err) and '10' in err, err
    assert not list(tmp_path.iterdir())
    code, out, err = here(*fuse, '--allow-gaps')
    assert code == 0, err
    notes = json.loads((tmp_path/'fused/medfusion.json').read_text())['notes']
    assert any('missing' in note for note in notes) and 'missing' in out + err, notes


@pytest.mark.parametrize('folder', ['CT_some', 'CT_all'])
def test_files_without_the_preamble_are_read(folder):
    case = CASES/'dicom_no_preamble'
    assert voxels(case/folder).shape == voxels(case/'MR').shape and len(voxels(case/folder)) == 24
    assert len(voxels(sorted((case/folder).iterdir())[-1])) == 24, 'one file names its series'


@pytest.mark.parametrize('folder', ['CT', 'CT_top', 'CT_half'])
def test_a_cosine_that_rounds_differently_splits_nothing(folder):
    found = find_series(CASES/'dicom_orientation_jitter'/folder)
    assert [len(s.slices) for s in found] == [48]
    assert len(voxels(CASES/'dicom_orientation_jitter'/folder)) == 48


def test_a_modality_that_says_nothing_is_chosen(here):
    case = CASES/'dicom_modality'
    code, _, err = here('medfusion_fuse', case/'CT', case/'MR', '--ct-series', '1', '--register', 'never')
    assert code == 0, err


def test_enhanced_files_are_one_volume():
    case = CASES/'dicom_enhanced_split'
    two, each = (voxels(case/name) for name in ('MR_two', 'MR_each'))
    assert len(two) == 24 and np.array_equal(two, each)


@pytest.mark.parametrize('name', ['ct_m11', 'ct_z', 'ct_0_254', 'ct_0_1000'])
def test_what_is_not_hounsfield_units_is_refused(name, here):
    case = CASES/'nifti_not_hu'
    code, _, err = here('medfusion_fuse', case/f'{name}.nii.gz', case/'mr.nii.gz', '-o', 'out.nii.gz')
    assert code == 2 and 'wrong units' in one_line(err) and name in err, err


def test_swapped_volumes_are_refused(here):
    case = CASES/'nifti_swapped'
    code, _, err = here('medfusion_fuse', case/'mr.nii.gz', case/'ct.nii.gz', '-o', 'out.nii.gz')
    assert code == 2 and 'nii.gz' in one_line(err), err


@pytest.mark.parametrize('what', ['ct', 'mr'])
@pytest.mark.parametrize('unit', ['metre', 'micron'])
def test_units_of_a_nifti_file_count(what, unit):
    case = CASES/'nifti_units'
    plain, other = (read_volume(case/f'{what}{end}.nii.gz').image for end in ('', f'_{unit}'))
    assert np.allclose(plain.GetSpacing(), other.GetSpacing(), rtol=1e-5)
    assert np.allclose(plain.GetOrigin(), other.GetOrigin(), atol=1e-3)


def test_names_do_not_hide_what_a_file_is():
    case = CASES/'nifti_names'
    for name in ('ct_gz.nii', 'ct_plain.nii.gz'):
        assert np.array_equal(voxels(case/name), voxels(case/'ct.nii.gz')), name
    first = read_volume(case/'mr.mgz').image
    for name in ('mr.img', 'mr.hdr'):
        second = read_volume(case/name).image
        assert np.allclose(sitk.GetArrayFromImage(first), sitk.GetArrayFromImage(second)), name
        assert np.allclose(first.GetOrigin(), second.GetOrigin(), atol=1e-3), name


def test_three_formats_lie_the_same_way():
    case = CASES/'exif_orientation'
    tif, png, jpg = (decode_image(case/name) for name in ('ct.tif', 'ct_exif.png', 'ct.jpg'))
    assert np.array_equal(tif, png) and np.abs(tif.astype(int) - jpg).mean() < 4


def test_twelve_bits_are_not_black(here, tmp_path):
    case = CASES/'png_12bit_in_16bit'
    for name, out in (('mri.png', 'a.png'), ('mri8.png', 'b.png')):
        code, said, err = here('medfusion_fuse', case/'ct.png', case/name, '-o', out)
        assert code == 0, err
        if name == 'mri.png': assert '4095' in said + err, 'the stretch is said'
    assert np.abs(read_image('a.png') - read_image('b.png')).max() < 4/255
    code, out, _ = here('medfusion_data', 'verify', case/'set')
    assert '4095' in out or code == 1, out


def test_colour_is_not_dropped_without_a_word(here):
    case = CASES/'pet_without_pair'
    code, out, err = here('medfusion_fuse', case/'pet.png', case/'mri.png', '-o', 'a.png')
    assert 'pet-mri' in out + err, (code, out, err)
    code, out, err = here('medfusion_fuse', case/'mri.png', case/'pet.png', '--pair', 'pet-mri', '-o', 'b.png')
    assert code == 2 or 'colour' in out + err, (code, out, err)


@pytest.mark.parametrize('case', ['fault_short_pixels', 'fault_dicom_no_columns', 'fault_dicom_two_uids',
                                  'fault_dicom_bad_slope', 'fault_dicom_million_frames'])
def test_impossible_headers_are_one_line(case):
    assert '.dcm' in refused(read_volume, CASES/case)


def test_small_files_that_claim_much_or_crashed_the_reader(tmp_path):
    "In a process of its own, since two of them ended the interpreter."
    code = """
import sys
from medfusion_nb.register import load_transform
from medfusion_nb.volume import read_volume
for path in sys.argv[1:]:
    try: (load_transform if path.endswith('.tfm') else read_volume)(path)
    except ValueError as e: assert path in str(e) and '\\n' not in str(e), e
    else: raise AssertionError(path)
"""
    names = ('fault_nifti_claims/a.nii', 'fault_mha_ndims_segv/a.mha', 'fault_mha_ndims_segv/a.nrrd',
             'fault_transform_inf_segv/inf.tfm')
    done = subprocess.run([sys.executable, '-c', code, *(str(CASES/n) for n in names)], cwd=tmp_path,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_burned_in_annotation_is_not_denied(tmp_path):
    scan = read_volume(CASES/'fault_burned_in'/'CT', hu=False)
    study = fuse_study(align(scan, scan._replace(modality='MR'), register='never'), load_engine())
    for deidentify in (False, True):
        write_study(study, tmp_path/str(deidentify), deidentify=deidentify)
        first = next((tmp_path/str(deidentify)/'dicom').iterdir())
        assert pydicom.dcmread(first).BurnedInAnnotation == 'YES'


def test_a_folder_of_weights_is_read_back():
    assert load_network(CASES/'fault_compact_folder'/'hub').training is False


def test_a_scheduler_silences_nothing(tmp_path):
    code, out, err = run('medfusion_fuse', cwd=tmp_path, env=dict(RANK='1'))
    assert code == 0 and 'wrote fused.png' in out, (out, err)


def test_a_name_is_not_mathematics(here, tmp_path):
    shutil.copytree(CASES/'fault_dollar_name', tmp_path/'set')
    for command in (['medfusion_data', 'verify', 'set', '--figure', 'worst.png'],
                    ['medfusion_evaluate', 'set', '--out', 'scores', '--no-findings', '--split', 'all',
                     '--patient', '(.*)']):
        code, out, err = here(*command)
        assert code in (0, 1) and 'Traceback' not in err and 'parse' not in err.lower(), (out, err)
