"""PET and SPECT: SUV beside the numbers of published programs, files of scanners, and what is written."""
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from suv_headers import BASE, HEADERS, PUBLISHED, header

from medfusion_nb.nuclear import suv_factor, to_suv
from medfusion_nb.phantom import make_grid, phantom_volume
from medfusion_nb.volume import Scan, _unit, choose_series, find_series, list_series, orientation, read_volume, write_original

# programs that differ, and why: calculate-suv takes ADMIN for START, and the first acquisition that it sees for the start where
# the first bed is not there; platipy knows neither private elements nor other times, and believes the series time
DIFFERS = {('corrected to the injection', 'calculate-suv'), ('Siemens, written again, second bed', 'calculate-suv'),
           ('GE, written again, second bed', 'calculate-suv'), ('dose in MBq', 'calculate-suv'),
           ('dose in MBq', 'platipy')} | {(name, 'platipy') for name in HEADERS if 'written again' in name}


@pytest.mark.parametrize('name', HEADERS)
def test_suv_as_published_programs_compute_it(name):
    ds = header(name)
    factor, _ = suv_factor([ds], _unit(ds))
    programs = dict(zip(('mirp', 'pycerr', 'calculate-suv', 'platipy'), PUBLISHED[name]))
    for program, theirs in programs.items():
        if theirs is None: continue
        agrees = abs(factor/theirs - 1) < 1e-6
        assert agrees != ((name, program) in DIFFERS), (program, factor, theirs)
    assert programs['mirp'] and programs['pycerr']


GONE = {'PatientWeight': 'PatientWeight (0010,1030)', 'CorrectedImage': 'does not hold ATTN and DECY',
        'DecayCorrection': 'DecayCorrection (0054,1102)', 'Units': 'unknown unit',
        'RadiopharmaceuticalInformationSequence': 'no RadiopharmaceuticalInformationSequence (0054,0016)'}


@pytest.mark.parametrize('keyword', GONE)
def test_what_is_missing_is_named(keyword):
    ds = header('Siemens')
    del ds[keyword]
    with pytest.raises(ValueError, match=re.escape(GONE[keyword])) as e: suv_factor([ds], _unit(ds))
    message = str(e.value)
    assert message.startswith('Siemens.dcm: ') and '--range' in message and '\n' not in message


@pytest.mark.parametrize('keyword', ['RadionuclideTotalDose', 'RadionuclideHalfLife', 'RadiopharmaceuticalStartTime'])
@pytest.mark.parametrize('value', [None, '', '0', '-5', 'abc'])
def test_what_is_missing_of_the_injection_is_named(keyword, value):
    ds = header('time of the injection without a date')
    item = ds.RadiopharmaceuticalInformationSequence[0]
    with pydicom.config.disable_value_validation():
        if value is None: del item[keyword]
        elif value != 'abc': setattr(item, keyword, value)
        else: item[keyword] = pydicom.dataelem.RawDataElement(item[keyword].tag, item[keyword].VR, 4, b'abc ', 0, False, True)
    with pytest.raises(ValueError) as e: suv_factor([ds], 'Bq/mL')
    assert 'time of the injection without a date.dcm' in str(e.value) and '\n' not in str(e.value)
    assert 'Radio' in str(e.value)


BAD = [dict(PatientWeight='0'), dict(PatientWeight='0.03'), dict(PatientWeight='7250'), dict(CorrectedImage='DECY'),
       dict(CorrectedImage=['NORM', 'ATTN']), dict(DecayCorrection='OTHER'), dict(DecayCorrection='NONE'),
       dict(SeriesTime='', AcquisitionTime=''), dict(SeriesTime='99', AcquisitionTime='11')]


@pytest.mark.parametrize('tags', BAD, ids=str)
def test_what_cannot_be_is_refused(tags):
    ds = header('Siemens')
    with pydicom.config.disable_value_validation():
        for k, v in tags.items(): setattr(ds, k, v)
    with pytest.raises(ValueError, match='Siemens.dcm: .*cannot be converted to SUV'): suv_factor([ds], 'Bq/mL')


def test_slices_that_disagree_are_refused():
    a, b = header('Siemens'), header('Siemens')
    assert suv_factor([a, b], 'Bq/mL') == suv_factor([a], 'Bq/mL')
    b.PatientWeight, b.filename = '80', 'other.dcm'
    with pytest.raises(ValueError, match='other.dcm: its weight, dose or corrections'): suv_factor([a, b], 'Bq/mL')


def test_the_first_bed_tells_the_start_whatever_the_order():
    beds = [header('GE') for _ in range(3)]
    for i, h in enumerate(beds): h.AcquisitionTime, h.SeriesTime = f'11{1 + 4*i:02d}05', '153000'
    assert suv_factor(beds[::-1], 'Bq/mL')[0] == pytest.approx(PUBLISHED['GE'][0])


def test_a_long_lived_tracer_needs_the_date():
    ds = header('Siemens')
    item = ds.RadiopharmaceuticalInformationSequence[0]
    item.RadionuclideHalfLife, item.RadiopharmaceuticalStartDateTime = '282240', '20231228100320' # Zr-89
    factor, _ = suv_factor([ds], 'Bq/mL')
    assert factor == pytest.approx(72500/(348.2e6*2**(-(5*86400 + 3465)/282240)))
    del item.RadiopharmaceuticalStartDateTime
    with pytest.raises(ValueError, match='does not fit'): suv_factor([ds], 'Bq/mL')


# what is read


@pytest.fixture(scope='module')
def head(): return phantom_volume((40, 44, 20), (5.5, 5, 8), noise=False)


def uptake(head, scale=20.): return sitk.Cast(head.mri, sitk.sitkFloat32)*scale - 30. # with some values below 0


CODES = 'LPS', 'RAS', 'LAI', 'PIR', 'ASL', 'SPR', 'RPI', 'IAL'


def same_places(image, truth, atol):
    "The values of an image at the places of another one's voxels."
    there = sitk.Resample(image, truth, sitk.Transform(), sitk.sitkNearestNeighbor, np.nan, sitk.sitkFloat64)
    a, b = sitk.GetArrayFromImage(there), sitk.GetArrayFromImage(truth)
    np.testing.assert_allclose(a, b, atol=atol)


@pytest.mark.parametrize('code', CODES)
def test_a_pet_comes_back(head, tmp_path, code):
    pet = sitk.DICOMOrient(uptake(head), code)
    files = write_original(pet, tmp_path, 'PT')
    scan = read_volume(tmp_path, 'PT')
    same_places(scan.image, pet, .51*sitk.GetArrayFromImage(pet).max()/32767)
    assert len({pydicom.dcmread(f).RescaleSlope for f in files}) > 5 # of each slice
    assert (scan.modality, scan.unit, scan.notes) == ('PT', 'Bq/mL', [])
    assert sitk.GetArrayFromImage(scan.image).min() < -20


@pytest.mark.parametrize('code', CODES)
def test_a_spect_comes_back(head, tmp_path, code):
    spect = sitk.DICOMOrient(sitk.Cast(head.mri, sitk.sitkFloat32), code)
    [file] = write_original(spect, tmp_path, 'NM')
    scan = read_volume(file)
    same_places(scan.image, spect, .51)
    assert (scan.modality, scan.unit, scan.notes) == ('NM', 'counts', [])
    left_handed = np.linalg.det(np.reshape(spect.GetDirection(), (3, 3))) < 0
    assert (pydicom.dcmread(file).SpacingBetweenSlices < 0) == left_handed
    same_places(sitk.ReadImage(str(file), sitk.sitkFloat32), spect, .51) # and as GDCM reads it


def test_left_handed_orientations_are_among_these(head):
    signs = {np.sign(np.linalg.det(np.reshape(sitk.DICOMOrient(head.mri, c).GetDirection(), (3, 3)))) for c in CODES}
    assert signs == {-1, 1}


@pytest.mark.skipif(not shutil.which('dcm2niix'), reason='dcm2niix is not installed')
@pytest.mark.parametrize('code', ['LPS', 'ASL'])
def test_dcm2niix_puts_a_spect_in_the_same_place(head, tmp_path, code):
    spect = sitk.DICOMOrient(sitk.Cast(head.mri, sitk.sitkFloat32), code)
    [file] = write_original(spect, tmp_path/'nm', 'NM')
    subprocess.run(['dcm2niix', '-f', 'out', '-o', tmp_path, file.parent], check=True, capture_output=True)
    same_places(read_volume(tmp_path/'out.nii', 'NM').image, spect, .51)
