"PET and SPECT as a shell meets them: pairs of volumes, what is written, what is refused; and the tint."
import json
import shutil

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from conftest import one_line, run

from medfusion_nb.data import luminance
from medfusion_nb.phantom import make_grid, phantom_pet
from medfusion_nb.volume import phantom_study, read_volume, write_nifti_image

AT = sitk.Euler3DTransform((0, 0, 0), .05, .02, .08, (6, -4, 3)) # where PET and SPECT see the head
STAY = ('--register', 'never')

@pytest.fixture(scope='module')
def study(tmp_path_factory):
    "CT, MR, PT and NM of a phantom head, the last two displaced."
    home = tmp_path_factory.mktemp('functional')
    pet = phantom_pet(make_grid((80, 80, 44), (3, 3, 4)), 1, AT)
    spect = phantom_pet(make_grid((64, 64, 44), (4, 4, 4)), 1, AT, fwhm=10.)
    phantom_study(home/'study', pet, spect, size=(96, 96, 40), seed=1)
    for name, image in dict(pet=pet.image, spect=spect.image).items():
        write_nifti_image(sitk.GetArrayViewFromImage(image), image, home/'study'/f'{name}.nii.gz')
    mri = read_volume(home/'study'/'MR', 'MR').image
    write_nifti_image(sitk.GetArrayViewFromImage(mri), mri, home/'study'/'scan.nii.gz')
    return home/'study'

def fused(study, out, *words, ok=True):
    code, said, err = run('medfusion_fuse', *words, '-o', out, cwd=study)
    assert (code == 0) == ok, err
    return err if not ok else json.loads((out/'medfusion.json').read_text())

def stored(file):
    "Numbers of a NIfTI file, (z,y,x) or (z,y,x,3)."
    a = np.asanyarray(nibabel.load(file).dataobj).T
    return a if a.dtype.names is None else np.stack([a[k] for k in 'RGB'], -1)

@pytest.mark.parametrize('words, names, unit', [
    (('PT', 'MR', '--pair', 'pet-mri'), ['MRI', 'PET'], 'SUV'),
    (('MR', 'PT'), ['MRI', 'PET'], 'SUV'),
    (('PT', 'CT', '--style', 'overlay'), ['CT', 'PET'], 'SUV'),
    (('NM', 'CT', '--pair', 'spect-ct'), ['CT', 'SPECT'], 'counts')])
def test_pairs(study, tmp_path, words, names, unit):
    said = fused(study, tmp_path/'out', *words, '--png', '--contact-sheet', '--figure')
    assert said['scans'] == names and said['space_of'] == names[0].lower() and said['colors']['unit'] == unit
    grades = ('trusted', 'look at it') if 'NM' in words else ('trusted',) # a SPECT is nearly its mirror image
    assert said['registration']['grade'] in grades, said['aligned_by']
    found = sitk.Euler3DTransform(sitk.ReadTransform(str(tmp_path/'out'/'transform.tfm')))
    points = (0., 0, 0), (60., 0, 30), (-60., 40, 0), (0., -70, 40)
    off = [np.linalg.norm(np.subtract(found.TransformPoint(p), AT.TransformPoint(p))) for p in points]
    assert max(off) < 4, off
    grey, rgb = stored(tmp_path/'out'/'fused.nii.gz'), stored(tmp_path/'out'/'color.nii.gz')
    assert rgb.dtype == np.uint8 and rgb.shape == (*grey.shape, 3) and (np.ptp(rgb, axis=-1) > 40).mean() > .01
    if '--style' not in words: assert np.abs(luminance(rgb/255) - grey).max() < 1.5/255
    uptake, numbers = stored(tmp_path/'out'/'uptake.nii.gz'), read_volume(tmp_path/'out'/'dicom_uptake')
    assert numbers.unit == unit and uptake.shape == grey.shape
    again = sitk.GetArrayFromImage(sitk.DICOMOrient(numbers.image, 'LPS'))
    limit = .5 if unit == 'counts' else 1e-3*uptake.max() # counts are whole numbers
    assert np.abs(again - uptake).max() <= limit + 1e-6
    made = {p.name for p in (tmp_path/'out').iterdir()}
    assert made >= {'dicom', 'dicom_color', 'png', 'contact_sheet.png', 'views.png', 'checkerboard.png', 'edges.png'}

def test_one_folder_holds_both(study, tmp_path):
    both = tmp_path/'both'
    for k in ('PT', 'MR'): shutil.copytree(study/k, both/k)
    said = fused(study, tmp_path/'out', both, both, *STAY, '--format', 'nifti')
    assert said['scans'] == ['MRI', 'PET']

def test_files_that_do_not_say_what_they_are(study, tmp_path):
    said = fused(study, tmp_path/'a', 'pet.nii.gz', 'scan.nii.gz', *STAY, '--format', 'nifti')
    assert said['scans'] == ['MRI', 'PET'] and said['colors']['unit'] == ''
    assert any('taken for a PET by its name' in note for note in said['notes'])
    said = fused(study, tmp_path/'b', 'scan.nii.gz', 'spect.nii.gz', *STAY, '--range', '1,6', '--format', 'nifti')
    assert said['scans'] == ['MRI', 'SPECT'] and [said['colors'][k] for k in ('threshold', 'full_color')] == [1, 6]

def test_grid_of_the_pet(study, tmp_path):
    said = fused(study, tmp_path/'out', 'PT', 'MR', *STAY, '--grid', 'pet')
    assert said['size'] == [80, 80, 44] and said['space_of'] == 'pet'

def test_a_pet_without_a_weight(study, tmp_path):
    import pydicom
    bare = tmp_path/'PT'
    shutil.copytree(study/'PT', bare)
    for p in bare.iterdir():
        header = pydicom.dcmread(p)
        del header.PatientWeight
        header.save_as(p)
    err = fused(study, tmp_path/'out', bare, 'MR', *STAY, ok=False)
    assert 'PatientWeight (0010,1030)' in err and '--range' in err and err.count('\n') == 1
    said = fused(study, tmp_path/'out', bare, 'MR', *STAY, '--range', '20000', '--format', 'nifti')
    assert said['colors']['unit'] == 'Bq/mL' and any('PatientWeight' in note for note in said['notes'])

@pytest.mark.parametrize('words, why', [
    (('PT', 'NM'), 'both show function'),
    (('CT', 'MR', '--style', 'overlay'), '--tint tells the scans apart'),
    (('PT', 'MR', '--tint', '1'), 'has its own'),
    (('CT', 'MR', '--range', '5'), 'leave --range out'),
    (('PT', 'MR', '--range', '5,2'), 'LOWEST,HIGHEST'),
    (('CT', 'MR', '--tint', '-1'), 'tint'),
    (('CT', 'MR', '--grid', 'pet'), 'grid'),
    (('PT', 'MR', '--pair', 'pet-mri', '--window', 'bone'), 'none of the scans is a CT')])
def test_what_does_not_fit_is_one_line(study, tmp_path, words, why):
    err = fused(study, tmp_path/'out', *words, *STAY, ok=False)
    assert why in err, err
    one_line(err)
    assert not (tmp_path/'out').exists()

def test_swapped_order_is_said(study, tmp_path):
    err = fused(study, tmp_path/'out', 'MR', 'PT', '--pair', 'pet-mri', *STAY, ok=False)
    assert 'MR: no PT series; none of these can be a PET' in err and 'Traceback' not in err

def test_tint(study, tmp_path):
    said = fused(study, tmp_path/'out', 'CT', 'MR', *STAY, '--tint', '1', '--figure')
    assert said['colors'] == dict(tint=1)
    grey, rgb = stored(tmp_path/'out'/'fused.nii.gz'), stored(tmp_path/'out'/'color.nii.gz')/255
    assert np.abs(luminance(rgb) - .9*grey).max() < 1.5/255
    bone = stored_hu(study/'CT') > 600
    assert (rgb[bone][:, 0] - rgb[bone][:, 2]).mean() > .05 # warm: the CT shows it

def stored_hu(folder): return sitk.GetArrayFromImage(read_volume(folder, 'CT').image)

def test_several(study, tmp_path):
    code, _, err = run('medfusion_fuse', 'MR', 'CT', 'PT', '--pair', 'mri-mri', *STAY, '-o', tmp_path/'out', cwd=study)
    assert code == 2 and 'none of these can be an MRI' in err
    code, _, err = run('medfusion_fuse', 'CT', 'MR', 'PT', *STAY, '--format', 'nifti', '-o', tmp_path/'out', cwd=study)
    assert code == 0, err
    assert (tmp_path/'out'/'PT'/'color.nii.gz').is_file() and not (tmp_path/'out'/'MR'/'color.nii.gz').exists()

def test_cohort(study, tmp_path):
    (tmp_path/'studies.csv').write_text(f"subject,ct,mri\na,{study/'PT'},{study/'MR'}\nb,{study/'CT'},{study/'MR'}\n")
    code, said, err = run('medfusion_cohort', tmp_path/'studies.csv', tmp_path/'out', '--workers', '0',
                          '--pair', 'pet-mri', '--range', '2,12', cwd=tmp_path)
    assert code == 11 and '1 trusted, 1 failed' in said, (said, err)
    record = json.loads((tmp_path/'out'/'a'/'medfusion.json').read_text())
    assert [record['colors'][k] for k in ('unit', 'threshold', 'full_color')] == ['SUV', 2, 12]
    assert record['trusted'] and '--pair pet-mri --range 2,12' in record['command']
    assert (tmp_path/'out'/'a'/'color.nii.gz').is_file() and (tmp_path/'out'/'a'/'uptake.nii.gz').is_file()
    assert 'PET' in next((tmp_path/'out'/'a').glob('*.html')).read_text()
    code, said, err = run('medfusion_cohort', tmp_path/'studies.csv', tmp_path/'out', '--workers', '0',
                          '--pair', 'pet-mri', '--range', '2,12', '--dry-run', cwd=tmp_path)
    assert '1 done' in said, said
