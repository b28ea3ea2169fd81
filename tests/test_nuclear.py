"""PET and SPECT: SUV beside the numbers of published programs, files of scanners, and what is written."""
import re
import shutil
import subprocess

import cv2
import nibabel
import numpy as np
import pydicom
import pydicom.data
import pytest
import SimpleITK as sitk
from suv_headers import HEADERS, PUBLISHED, header

from medfusion_nb.nuclear import (suv_factor, to_suv, uptake_range, write_numbers, write_rgb_dicom,
                                  write_rgb_nifti)
from medfusion_nb.phantom import like, make_grid, phantom_pet, phantom_volume
from medfusion_nb.volume import (RESEARCH, _unit, find_series, list_series, orientation, read_volume, resample,
                                 write_original)

# programs that differ, and why: calculate-suv takes ADMIN for START, does not know the private element of Siemens, and
# takes the first acquisition that it sees for the start where the first bed is not there; platipy knows neither
# private elements nor other times, and believes the series time; both take a dose as it is
DIFFERS = {('corrected to the injection', 'calculate-suv'), ('Siemens, written again, second bed', 'calculate-suv'),
           ('Siemens, written again, its own start', 'calculate-suv'),
           ('GE, written again, second bed', 'calculate-suv'),
           ('dose in MBq', 'calculate-suv'), ('dose in MBq', 'platipy'), ('Philips counts, no SUV factor', 'platipy')}
DIFFERS |= {(name, 'platipy') for name in HEADERS if 'written again' in name}


@pytest.mark.parametrize('name', HEADERS)
def test_suv_as_published_programs_compute_it(name):
    ds = header(name)
    factor, _ = suv_factor([ds], _unit(ds))
    programs = dict(zip(('mirp', 'pycerr', 'calculate-suv', 'platipy'), PUBLISHED[name]))
    for program, theirs in programs.items():
        if theirs is None: continue
        agrees = abs(factor - theirs) < 1e-6*factor
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
        else:
            e = item[keyword]
            item[keyword] = pydicom.dataelem.RawDataElement(e.tag, e.VR, 4, b'abc ', 0, False, True)
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


def test_the_injection_in_the_words_of_ge():
    ds = header('GE')
    item = ds.RadiopharmaceuticalInformationSequence[0]
    del item.RadiopharmaceuticalStartTime, item.RadiopharmaceuticalStartDateTime
    ds.private_block(0x09, 'GEMS_PETD_01', create=True).add_new(0x3b, 'DT', '20240102100320.00')
    assert suv_factor([ds], 'Bq/mL')[0] == pytest.approx(PUBLISHED['GE'][0])
    del ds[0x09, 0x10] # the name of the maker, as some programs remove it
    assert suv_factor([ds], 'Bq/mL')[0] == pytest.approx(PUBLISHED['GE'][0])


@pytest.mark.parametrize('start, said', [('110005', 'the series time'), ('104105', 'by its frame times')])
def test_a_series_time_before_the_scan_is_believed_where_the_frames_agree(start, said):
    "The first frame began a minute after the start, or so its FrameReferenceTime says."
    ds = header('Siemens')
    ds.SeriesTime, ds.FrameReferenceTime = start, '179747'
    factor, notes = suv_factor([ds], 'Bq/mL')
    assert said in str(notes) and factor == pytest.approx(PUBLISHED['Siemens'][0]*2**(-60/6586.2), rel=1e-5)


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


# sets that lie at one place


def framed(path, **tags):
    "A file of nuclear medicine with other elements, and as many frames as its vectors have numbers."
    ds = pydicom.dcmread(path)
    frames = ds.pixel_array
    n = len(next((v for k, v in tags.items() if k.endswith('Vector')), frames))
    ds.PixelData = np.concatenate([frames*(1 + i) for i in range(n//len(frames))]).tobytes()
    ds.NumberOfFrames = n
    for k, v in tags.items():
        if v is None: del ds[k]
        else: setattr(ds, k, v)
    ds.save_as(path)
    return path


def small(head): return sitk.Cast(head.mri, sitk.sitkFloat32)/20


def test_a_gated_spect_is_told_apart(head, tmp_path):
    [file] = write_original(small(head), tmp_path, 'NM')
    n = head.mri.GetDepth()
    framed(file, SliceVector=[*range(1, n + 1)]*3, TimeSlotVector=[1]*n + [2]*n + [3]*n,
           ImageType=['ORIGINAL', 'PRIMARY', 'RECON GATED TOMO', 'EMISSION'])
    found = find_series(tmp_path)
    assert [s.description for s in found] == [f'Phantom NM time slot {k}' for k in (1, 2, 3)]
    with pytest.raises(ValueError, match=r'3 NM series fit; choose one .*\(--ct-series, or --mri-series'):
        read_volume(tmp_path, 'NM')
    first, third = (sitk.GetArrayFromImage(read_volume(tmp_path, 'NM', series=k).image) for k in ('1', 'slot 3'))
    np.testing.assert_array_equal(third, 3*first)


def test_frames_in_any_order_lie_at_their_places(head, tmp_path):
    "Slices of two energy windows in turn, as some cameras write them."
    [file] = write_original(small(head), tmp_path, 'NM')
    truth, n = read_volume(tmp_path, 'NM').image, head.mri.GetDepth()
    ds = pydicom.dcmread(file)
    frames = ds.pixel_array
    ds.PixelData, ds.NumberOfFrames = np.repeat(frames, 2, axis=0).tobytes(), 2*n
    ds.SliceVector, ds.EnergyWindowVector = [i for k in range(n) for i in (k + 1,)*2], [1, 2]*n
    ds.save_as(file)
    assert len(find_series(tmp_path)) == 2
    for k in ('1', '2'):
        there = read_volume(tmp_path, 'NM', series=k).image
        np.testing.assert_array_equal(sitk.GetArrayFromImage(there), sitk.GetArrayFromImage(truth))
        assert there.GetOrigin() == truth.GetOrigin() and there.GetSpacing() == pytest.approx(truth.GetSpacing())


@pytest.mark.parametrize('tags, said', [
    (dict(SpacingBetweenSlices=None), 'no SpacingBetweenSlices'),
    (dict(SpacingBetweenSlices='500'), 'SpacingBetweenSlices is 500'),
    (dict(SliceVector=[*range(20, 0, -1)]), 'its first frame is slice 20'),
    (dict(SliceVector=[1, 2, 3]), 'SliceVector does not number its 20 frames'),
    (dict(DetectorInformationSequence=None), 'no position and no orientation'),
    (dict(ImageType=['ORIGINAL', 'PRIMARY', 'TOMO', 'EMISSION']), 'holds projections (TOMO) and no volume'),
    (dict(ImageType=['ORIGINAL', 'PRIMARY', 'WHOLE BODY', 'EMISSION']), 'holds projections (WHOLE BODY)')], ids=str)
def test_what_is_no_volume_is_refused(head, tmp_path, tags, said):
    [file] = write_original(small(head), tmp_path, 'NM')
    ds = pydicom.dcmread(file)
    for k, v in tags.items():
        if v is None: del ds[k]
        else: setattr(ds, k, v)
    ds.save_as(file)
    with pytest.raises(ValueError, match=re.escape(said)) as e: read_volume(tmp_path, 'NM')
    assert 'NM0000.dcm' in str(e.value) and '\n' not in str(e.value)


def test_a_whole_body_picture_of_a_real_camera_is_refused(tmp_path):
    shutil.copy(pydicom.data.get_testdata_file('JPEG2000.dcm', download=False), tmp_path)
    said = re.escape('holds projections (WHOLE BODY)')
    with pytest.raises(ValueError, match=said): read_volume(tmp_path/'JPEG2000.dcm', 'NM')


def test_the_reconstruction_is_taken_beside_its_projections(head, tmp_path):
    write_original(small(head), tmp_path/'recon', 'NM')
    write_original(small(head), tmp_path/'raw', 'NM', ImageType=['ORIGINAL', 'PRIMARY', 'TOMO', 'EMISSION'],
                   SeriesDescription='Raw')
    assert 'projections' in list_series(find_series(tmp_path))
    assert read_volume(tmp_path, 'NM').headers[0].SeriesDescription == 'Phantom NM'


def test_a_dynamic_pet_is_told_apart(head, tmp_path):
    series = pydicom.uid.generate_uid()
    for k, minute in enumerate((0, 5, 10)):
        write_original(uptake(head, 10. + k), tmp_path/f'{k}', 'PT', SeriesInstanceUID=series,
                       SeriesType=['DYNAMIC', 'IMAGE'],
                       FrameReferenceTime=str(60000*minute), AcquisitionTime=f'11{minute:02d}00', NumberOfTimeSlices=3)
    assert [s.description for s in find_series(tmp_path)] == [f'Phantom PT time {k}' for k in (1, 2, 3)]
    with pytest.raises(ValueError, match='3 PT series fit'): read_volume(tmp_path, 'PT')
    means = [sitk.GetArrayFromImage(read_volume(tmp_path, 'PT', series=k).image).mean() for k in ('1', '2', '3')]
    assert means == sorted(means) and means[0] < means[2]


def test_a_folder_of_all_kinds(head, tmp_path):
    for kind, image in (('CT', head.ct), ('MR', head.mri), ('PT', uptake(head)), ('NM', small(head))):
        write_original(image, tmp_path/kind, kind)
    for kind, unit in (('CT', 'HU'), ('MR', ''), ('PT', 'Bq/mL'), ('NM', 'counts')):
        for scan in (read_volume(tmp_path, kind), read_volume(tmp_path, prefer=kind)):
            assert (scan.modality, scan.unit) == (kind, unit)
    assert read_volume(tmp_path, prefer='CT', series='phantom pt').modality == 'PT' # what is picked, is taken
    with pytest.raises(ValueError, match="no CT series fits 'phantom pt'"):
        read_volume(tmp_path, 'CT', series='phantom pt')
    shutil.rmtree(tmp_path/'CT')
    with pytest.raises(ValueError, match='no CT series;'): read_volume(tmp_path, 'CT')
    assert read_volume(tmp_path, prefer='CT').modality == 'MR' # rather than what shows function
    shutil.rmtree(tmp_path/'MR')
    with pytest.raises(ValueError, match='2 others fit'): read_volume(tmp_path, prefer='CT')
    shutil.rmtree(tmp_path/'NM')
    assert read_volume(tmp_path, prefer='MR').modality == 'PT'


def test_slices_of_two_units_are_refused(head, tmp_path):
    files = write_original(uptake(head), tmp_path, 'PT')
    ds = pydicom.dcmread(files[3])
    ds.Units = 'CNTS'
    ds.save_as(files[3])
    with pytest.raises(ValueError, match='different units') as e: read_volume(tmp_path, 'PT')
    assert 'PT0003.dcm' in str(e.value) and '\n' not in str(e.value)


def test_an_enhanced_pet_says_its_unit(head, tmp_path):
    "A multi-frame file with functional groups, the slope of each frame, and units of UCUM."
    def item(**tags):
        ds = pydicom.dataset.Dataset()
        for k, v in tags.items(): setattr(ds, k, v)
        return ds
    slices = [pydicom.dcmread(f) for f in write_original(uptake(head), tmp_path/'s', 'PT')]
    ds = slices[0]
    ds.PixelData, ds.NumberOfFrames = b''.join(s.PixelData for s in slices), len(slices)
    code = item(CodeValue='Bq/ml', CodingSchemeDesignator='UCUM', CodeMeaning='Becquerels/milliliter')
    shared = item(PixelMeasuresSequence=[item(PixelSpacing=ds.PixelSpacing, SliceThickness='8')],
                  PlaneOrientationSequence=[item(ImageOrientationPatient=ds.ImageOrientationPatient)],
                  RealWorldValueMappingSequence=[item(MeasurementUnitsCodeSequence=[code])])
    ds.SharedFunctionalGroupsSequence = [shared]
    scales = [item(RescaleSlope=s.RescaleSlope, RescaleIntercept='0', RescaleType='US') for s in slices]
    ds.PerFrameFunctionalGroupsSequence = [
        item(PlanePositionSequence=[item(ImagePositionPatient=s.ImagePositionPatient)],
             PixelValueTransformationSequence=[scale]) for s, scale in zip(slices, scales)]
    for k in ('Units', 'ImagePositionPatient', 'ImageOrientationPatient', 'PixelSpacing', 'RescaleSlope',
              'RescaleIntercept', 'DecayCorrection', 'CorrectedImage'): del ds[k]
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = '1.2.840.10008.5.1.4.1.1.130'
    ds.DecayCorrected = ds.AttenuationCorrected = 'YES'
    ds.DecayCorrectionDateTime = '20240102110000'
    (tmp_path/'e').mkdir()
    ds.save_as(tmp_path/'e'/'one.dcm')
    one, many = (to_suv(read_volume(tmp_path/k, 'PT')) for k in 'es')
    assert one.unit == many.unit == 'SUV'
    np.testing.assert_allclose(sitk.GetArrayFromImage(one.image), sitk.GetArrayFromImage(many.image), rtol=1e-6)


def test_names_tell_what_files_do_not(head, tmp_path):
    for name, kind in (('sub-01_trc-18FFDG_pet.nii.gz', 'PT'), ('SPECT.nii', 'NM'), ('pt_01_t1.nii', 'MR')):
        sitk.WriteImage(small(head), tmp_path/name)
        scan = read_volume(tmp_path/name)
        assert (scan.modality, scan.unit) == (kind, '') and 'its name' in str(scan.notes)
    sitk.WriteImage(head.ct, tmp_path/'ct.nii')
    with pytest.raises(ValueError, match='is a CT and no PET'): read_volume(tmp_path/'ct.nii', 'PT')
    assert read_volume(tmp_path/'ct.nii').unit == 'HU'
    assert read_volume(tmp_path/'ct.nii', hu=False).unit == ''


# what is written


TURNED = 'LPS', 'RAS', 'PIR', 'ASL'


def scans(head, tmp_path, kind, code='LPS'):
    "A CT and a PET or SPECT of the phantom, read from DICOM; PET in SUV."
    write_original(sitk.DICOMOrient(head.ct, code), tmp_path/'ct', 'CT')
    image = uptake(head) if kind == 'PT' else small(head)
    write_original(image, tmp_path/kind, kind)
    return read_volume(tmp_path/'ct', 'CT'), to_suv(read_volume(tmp_path/kind, kind), must=False)


def colours(image):
    "A mark of colour in each corner of the first slice and noise elsewhere, so that no turn goes unseen."
    rgb = np.random.default_rng(3).integers(0, 200, (*image.GetSize()[::-1], 3), np.uint8)
    rgb[0, 0, 0], rgb[0, 0, -1], rgb[0, -1, 0] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    return rgb


def out(tmp_path, name):
    (tmp_path/name).mkdir()
    return tmp_path/name


@pytest.mark.parametrize('code', TURNED)
def test_colours_keep_their_side(head, tmp_path, code):
    ct, pet = scans(head, tmp_path, 'PT', code)
    rgb = colours(ct.image)
    nii = nibabel.load(write_rgb_nifti(rgb, ct.image, tmp_path/'c.nii.gz'))
    files = write_rgb_dicom(rgb, ct.image, out(tmp_path, 'sc'), ct, pet)
    assert len(files) == ct.image.GetDepth()
    rng, stored = np.random.default_rng(0), np.asarray(nii.dataobj)
    slices = [pydicom.dcmread(f) for f in files]
    for x, y, z in rng.integers(0, ct.image.GetSize(), (40, 3)).tolist() + [[0, 0, 0], [ct.image.GetWidth() - 1, 0, 0]]:
        point = np.array(ct.image.TransformIndexToPhysicalPoint((x, y, z)))
        i, j, k = np.rint(np.linalg.solve(nii.affine, [*point*(-1, -1, 1), 1])[:3]).astype(int)
        assert tuple(stored[i, j, k]) == tuple(rgb[z, y, x])
        ds = slices[z] # where the standard puts the pixel: C.7.6.2.1.1
        row, column = np.reshape(ds.ImageOrientationPatient, (2, 3)).astype(float)
        at = np.array(ds.ImagePositionPatient, float) + x*ds.PixelSpacing[1]*row + y*ds.PixelSpacing[0]*column
        np.testing.assert_allclose(at, point, atol=1e-3)
        assert tuple(ds.pixel_array[y, x]) == tuple(rgb[z, y, x])
    letters = orientation(ct.image).translate(str.maketrans('SI', 'HF'))
    assert [*slices[0].PatientOrientation] == [*letters[:2]]
    assert len({s.SOPInstanceUID for s in slices}) == len(slices) and len({s.SeriesInstanceUID for s in slices}) == 1


@pytest.mark.parametrize('code', TURNED)
@pytest.mark.parametrize('kind', ['PT', 'NM'])
def test_numbers_keep_their_side_and_their_value(head, tmp_path, code, kind):
    ct, scan = scans(head, tmp_path, kind, code)
    there = resample(scan.image, ct.image)
    write_numbers(there, out(tmp_path, 'numbers'), scan, ct)
    again = read_volume(tmp_path/'numbers', kind)
    same_places(again.image, there, 2e-5*float(np.abs(sitk.GetArrayFromImage(there)).max()))
    assert (again.unit, again.modality, again.notes) == (scan.unit, kind, [])


@pytest.mark.parametrize('unit, code, kind', [
    ('SUV', 'GML', 'BW'), ('SUV LBM', 'GML', 'LBM'), ('SUV BSA', 'CM2ML', 'BSA'), ('Bq/mL', 'BQML', None),
    ('counts', 'CNTS', None), ('', 'NONE', None)])
def test_the_unit_comes_back(head, tmp_path, unit, code, kind):
    ct, scan = scans(head, tmp_path, 'PT')
    [file, *_] = write_numbers(scan.image, out(tmp_path, 'n'), scan._replace(unit=unit, headers=[]), ct)
    ds = pydicom.dcmread(file)
    assert (ds.Units, ds.get('SUVType')) == (code, kind)
    again = read_volume(tmp_path/'n', 'PT')
    assert again.unit == unit
    if unit != 'SUV':
        with pytest.raises(ValueError, match='cannot be converted to SUV'): to_suv(again)
        assert to_suv(again, must=False).unit == unit


def written_series(head, tmp_path):
    "Every kind of series that is written, by name."
    ct, pet = scans(head, tmp_path/'a', 'PT')
    spect = scans(head, tmp_path/'b', 'NM')[1]
    own = read_volume(tmp_path/'a'/'PT', 'PT')
    rgb, files = colours(ct.image), {}
    bare = {k: s._replace(headers=[]) for k, s in (('ct', ct), ('pet', pet), ('spect', spect))}
    for hidden in (False, True):
        def at(name): return out(tmp_path, f'{name} {hidden}')
        files[f'colours {hidden}'] = write_rgb_dicom(rgb, ct.image, at('c'), ct, pet, None, 'PET over CT', hidden)
        files[f'no header {hidden}'] = write_rgb_dicom(rgb, ct.image, at('d'), bare['ct'], None, None, '', hidden)
        files[f'SUV {hidden}'] = write_numbers(resample(pet.image, ct.image), at('s'), pet, ct, None, 'PET', hidden)
        files[f'own {hidden}'] = write_numbers(own.image, at('o'), own, own, None, '', hidden)
        files[f'bare pet {hidden}'] = write_numbers(pet.image, at('p'), bare['pet'], bare['ct'], None, '', hidden)
        files[f'spect {hidden}'] = write_numbers(resample(spect.image, ct.image), at('n'), spect, ct, None, '', hidden)
        files[f'bare spect {hidden}'] = write_numbers(spect.image, at('m'), bare['spect'], bare['ct'], None, '', hidden)
    return files


@pytest.fixture(scope='module')
def series(head, tmp_path_factory): return written_series(head, tmp_path_factory.mktemp('written'))


def test_all_say_research_and_have_a_description(series):
    for name, files in series.items():
        for f in files:
            ds = pydicom.dcmread(f, stop_before_pixels=True)
            assert RESEARCH in ds.SeriesDescription and RESEARCH in ds.DerivationDescription, name
            assert len(ds.SeriesDescription) <= 64 and ds.ImageType[0] == 'DERIVED', name


def test_nothing_of_the_patient_is_in_what_is_deidentified(head, series, tmp_path):
    ct, pet = scans(head, tmp_path, 'PT')
    named = {'Phantom^Head', 'PHANTOM', '20240102'}
    for name, files in series.items():
        hidden = name.endswith('True')
        data = b''.join(f.read_bytes() for f in files)
        if not hidden: assert name.startswith(('bare', 'no header')) or b'PHANTOM' in data, name
        else:
            assert not any(text.encode() in data for text in named), name
            ds = pydicom.dcmread(files[0])
            assert ds.PatientIdentityRemoved == 'YES' and 'SourceImageSequence' not in ds
            assert not ds.get('RadiopharmaceuticalInformationSequence') and not ds.get('PatientWeight'), name


@pytest.mark.skipif(not shutil.which('dciodvfy'), reason='dicom3tools is not installed')
def test_dicom3tools_finds_no_errors(series, head, tmp_path):
    for kind in ('PT', 'NM'): series = series | {kind: write_original(small(head), tmp_path/kind, kind)}
    for name, files in series.items():
        for f in files[:1] + files[-1:]:
            report = subprocess.run(['dciodvfy', f], capture_output=True, text=True).stderr
            assert [line for line in report.splitlines() if line.startswith('Error')] == [], name
            assert any(line in ('SCImage', 'PETImage', 'NMImage') for line in report.splitlines()), report


@pytest.mark.skipif(not shutil.which('dcmdump'), reason='dcmtk is not installed')
def test_dcmtk_reads_all(series, head):
    for name, files in series.items():
        dump = subprocess.run(['dcmdump', '-q', *map(str, files)], capture_output=True, text=True)
        assert dump.returncode == 0 and not dump.stderr, (name, dump.stderr)
    program = shutil.which('dcm2img') or shutil.which('dcmj2pnm') or shutil.which('dcm2pnm')
    if not program: return
    for f in (series['colours False'][3], series['no header True'][0]):
        png = f.with_suffix('.ppm')
        subprocess.run([program, '+op', f, png], check=True, capture_output=True)
        shown = cv2.imread(str(png))[..., ::-1]
        np.testing.assert_array_equal(shown, pydicom.dcmread(f).pixel_array)
        np.testing.assert_array_equal(shown, colours(head.ct)[int(f.stem) - 1])
    f = series['SUV False'][9]
    subprocess.run([program, '+op', f, f.with_suffix('.pgm')], check=True, capture_output=True)


def test_itk_reads_all_in_the_same_place(series):
    for name, files in series.items():
        folder = files[0].parent
        if 'spect' in name: image = sitk.ReadImage(str(files[0]), sitk.sitkFloat32)
        else: image = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
        if image.GetNumberOfComponentsPerPixel() == 3: continue # the place of one slice is tested above
        ours = read_volume(folder, 'NM' if 'spect' in name else 'PT').image
        same_places(image, ours, 2e-5*float(sitk.GetArrayFromImage(ours).max()))


def test_what_cannot_be_written_is_refused(head, tmp_path):
    ct, pet = scans(head, tmp_path, 'PT')
    rgb = colours(ct.image)
    for bad in (rgb[..., :2], rgb[1:], rgb.astype(float), rgb.transpose(2, 1, 0, 3)):
        with pytest.raises(ValueError, match='expected .* and uint8'):
            write_rgb_nifti(bad, ct.image, tmp_path/'x.nii')
        with pytest.raises(ValueError, match='expected .* and uint8'): write_rgb_dicom(bad, ct.image, tmp_path, ct)
    with pytest.raises(ValueError, match='a CT holds no uptake'): write_numbers(ct.image, tmp_path, ct, ct)
    nan = like(np.full(pet.image.GetSize()[::-1], np.nan, np.float32), pet.image)
    with pytest.raises(ValueError, match='not numbers'): write_numbers(nan, tmp_path, pet, ct)
    assert not [*tmp_path.glob('*.dcm'), *tmp_path.glob('*.nii')]


def test_a_slice_names_its_own_sources_only(head, tmp_path):
    ct, pet = scans(head, tmp_path, 'PT')
    tall = make_grid((16, 16, 30), (10, 10, 20), (0, 0, 0)) # reaches far above the head
    for name, write in (('n', lambda to: write_numbers(resample(pet.image, tall), to, pet, ct)),
                        ('c', lambda to: write_rgb_dicom(colours(tall), tall, to, ct, pet))):
        slices = [pydicom.dcmread(f) for f in write(out(tmp_path, name))]
        used = [len(s.get('SourceImageSequence', ())) for s in slices]
        assert used[0] == used[-1] == 0 < max(used) < 12


def test_small_and_large_numbers_are_not_lost(head, tmp_path):
    ct, pet = scans(head, tmp_path, 'PT')
    a = sitk.GetArrayFromImage(pet.image).astype(np.float64)
    for i, scale in enumerate((1e-6, 1e7)):
        values = like((a*scale).astype(np.float32), pet.image)
        write_numbers(values, out(tmp_path, f'{i}'), pet, ct)
        back = sitk.GetArrayFromImage(read_volume(tmp_path/f'{i}', 'PT').image)
        assert np.abs(back/scale - a).max() < 2e-5*np.abs(a).max()
    empty = like(np.zeros_like(a, np.float32), pet.image)
    write_numbers(empty, out(tmp_path, 'empty'), pet, ct)
    assert not sitk.GetArrayFromImage(read_volume(tmp_path/'empty', 'PT').image).any()


def test_a_range_is_of_the_uptake_and_not_of_the_empty_space(head):
    grid = make_grid((48, 56, 32), (4., 4., 5.))
    for fwhm in (6., 10.):
        pet = phantom_pet(grid, seed=1, fwhm=fwhm)
        low, high = uptake_range(pet.image)
        grey = np.median(sitk.GetArrayFromImage(pet.uptake)[pet.masks['grey_matter']])
        hot = sitk.GetArrayFromImage(pet.uptake)[sitk.GetArrayFromImage(pet.lesion) > 0].max()
        assert .8*hot < high < 1.25*hot and .2*grey < low < .4*grey
        even = uptake_range(phantom_pet(grid, seed=1, fwhm=fwhm, contrast=1.).image) # no spot is hotter than the rest
        assert grey < even[1] < 2*grey and even[0] == pytest.approx(low, rel=.1)
        wide = make_grid((96, 112, 64), (4., 4., 5.))
        padded = resample(pet.image, wide)
        np.testing.assert_allclose(uptake_range(padded), (low, high), rtol=.03)
        a = sitk.GetArrayFromImage(pet.image)
        assert uptake_range(like(np.where(a < 1, -50., a), grid)) == uptake_range(like(np.where(a < 1, 0., a), grid))
