"""Volumes as a shell meets them: bad studies, transfer syntaxes, judges of other makers,
a run that is killed, what may not be read."""
import json
import os
import re
import shutil
import signal
import subprocess

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from conftest import finish, one_line, run, tree

from medfusion_nb.phantom import make_grid
from medfusion_nb.volume import phantom_study, read_volume, write_original

FAST = ('--register', 'never')


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "A phantom study, written once: CT and MR on grids of their own."
    folder = tmp_path_factory.mktemp('made')
    phantom = phantom_study(folder/'study', size=(64, 64, 20), spacing=(3.6, 3.6, 8), seed=3,
                            mri_grid=make_grid((64, 64, 40), (3.4, 3.4, 4)))
    return folder/'study', phantom


@pytest.fixture
def study(made, tmp_path):
    "A copy of it to spoil."
    return shutil.copytree(made[0], tmp_path/'study')


def first(folder): return sorted(folder.iterdir())[0]


def edit(path, **tags):
    "Change elements of a DICOM file."
    ds = pydicom.dcmread(path)
    for k, v in tags.items(): setattr(ds, k, v)
    ds.save_as(path)


def test_a_study_becomes_nifti_and_dicom(study, made, tmp_path, here):
    code, out, err = run('medfusion_fuse', 'study', 'study', '-o', 'fused', *FAST,
                         '--png', '--contact-sheet', '--figure', cwd=tmp_path)
    assert code == 0, err
    assert 'PHANTOM' not in out + err and 'Phantom^Head' not in out + err, 'the patient was named'
    names = {p.name for p in (tmp_path/'fused').iterdir()}
    assert names == {'fused.nii.gz', 'dicom', 'png', 'contact_sheet.png', 'views.png',
                     'medfusion.json'}, names
    wrote = [line for line in out.splitlines() if line.startswith('wrote')]
    assert {line.removeprefix('wrote fused/') for line in wrote} == names
    assert 'Phantom' not in (tmp_path/'fused'/'medfusion.json').read_text()
    fused, ct = read_volume(tmp_path/'fused'/'fused.nii.gz').image, read_volume(study, 'CT')
    derived = read_volume(tmp_path/'fused'/'dicom', hu=False)
    for image in (fused, derived.image):
        np.testing.assert_allclose(image.GetOrigin() + image.GetSpacing(),
                                   ct.image.GetOrigin() + ct.image.GetSpacing(), atol=1e-4)
    assert derived.headers[0].StudyInstanceUID == ct.headers[0].StudyInstanceUID
    lesion = made[1].masks['lesion']
    assert sitk.GetArrayViewFromImage(fused)[lesion].mean() > .5, 'the lesion of the MRI is missing'
    before = tree(tmp_path/'fused')
    code, out, err = here('medfusion_fuse', study, study, '-o', tmp_path/'fused', *FAST)
    assert (code, out) == (2, '') and '--force' in one_line(err)
    assert tree(tmp_path/'fused') == before


def test_a_segmentation_comes_along(study, made, tmp_path):
    "Onto the CT from the MRI, on whose grid it was drawn, beside a folder's or a file's volume."
    ct, mr = made[1].ct, made[1].mri
    skull = sitk.GetImageFromArray(np.int16(300*made[1].masks['head']))
    skull.CopyInformation(ct)
    sitk.WriteImage(sitk.Resample(skull, mr, sitk.Transform(), sitk.sitkNearestNeighbor), tmp_path/'head.mha')
    code, out, err = run('medfusion_fuse', 'study', 'study', '-o', 'one.nii.gz', '--labels', 'head.mha',
                         '--register', 'never', cwd=tmp_path)
    assert code == 0 and out.count('wrote') == 2 and 'segmentation on the voxels of the MRI' in out, out + err
    kept = sitk.ReadImage(tmp_path/'one_labels.nii.gz')
    assert kept.GetPixelID() == sitk.sitkInt16 and kept.GetSize() == ct.GetSize()
    a, b = (sitk.GetArrayViewFromImage(v) == 300 for v in (kept, skull))
    assert 2*(a & b).sum()/(a.sum() + b.sum()) > .95
    code, _, err = run('medfusion_fuse', 'study', 'study', '-o', 'head.nii.gz', '--labels',
                       tmp_path/'one_labels.nii.gz', '--register', 'never', cwd=tmp_path)
    assert code == 0, err
    before = tree(tmp_path)
    code, out, err = run('medfusion_fuse', 'study', 'study', '-o', 'head.nii.gz', '--force', '--register', 'never',
                         '--labels', 'head_labels.nii.gz', cwd=tmp_path)
    assert (code, out) == (2, '') and 'would replace the source' in one_line(err), err
    assert tree(tmp_path) == before


def test_two_judges(study, tmp_path, here):
    "dciodvfy finds no error, and dcmtk the slices at the places of the CT."
    if not (shutil.which('dciodvfy') and shutil.which('dcmdump')):
        pytest.skip('dicom3tools and dcmtk are not installed')
    for p in sorted((study/'CT').iterdir())[:5]: p.unlink() # the slices need not begin where they did
    code, _, err = here('medfusion_fuse', study, study, '-o', tmp_path/'fused', *FAST,
                        '--format', 'dicom', '--deidentify')
    assert code == 0, err
    places = []
    for p in sorted((tmp_path/'fused'/'dicom').iterdir()):
        report = subprocess.run(['dciodvfy', p], capture_output=True, text=True).stderr
        assert 'Error' not in report, report
        command = ['dcmdump', '+P', 'ImagePositionPatient', '+P', 'PatientName', p]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert 'Phantom' not in text
        places.append([float(v) for v in re.search(r'DS \[(.*?)\]', text)[1].split('\\')])
    ct = read_volume(study, 'CT').image
    wanted = [ct.TransformIndexToPhysicalPoint((0, 0, k)) for k in range(ct.GetDepth())]
    np.testing.assert_allclose(places, wanted, atol=1e-6)


@pytest.mark.parametrize('coder', [('dcmcjpeg', '+e1'), ('dcmcjpls', '+el'), ('dcmcrle',),
                                   ('dcmconv', '+tb'), ('dcmconv', '+ti')], ids=' '.join)
def test_transfer_syntaxes(made, tmp_path, coder):
    "Lossless JPEG, JPEG-LS, run lengths, big endian and implicit types by dcmtk's own encoders."
    if not shutil.which(coder[0]): pytest.skip('dcmtk is not installed')
    (tmp_path/'CT').mkdir()
    for p in (made[0]/'CT').iterdir(): subprocess.run([*coder, p, tmp_path/'CT'/p.name], check=True)
    ours, theirs = (sitk.GetArrayFromImage(read_volume(f).image) for f in (tmp_path/'CT', made[0]/'CT'))
    np.testing.assert_array_equal(ours, theirs)


def test_bad_studies_are_named_and_leave_nothing(study, made, tmp_path, here):
    ct, mr = study/'CT', study/'MR'
    def spoiled(name, change, of=ct):
        shutil.copytree(of, tmp_path/name)
        change(first(tmp_path/name))
        return tmp_path/name
    def strange(p):
        for q in p.parent.iterdir(): edit(q, PatientID='OTHER')
    hu = read_volume(ct).image
    far = sitk.Image(hu)
    far.SetOrigin((900., 0, 0))
    sitk.WriteImage(far, tmp_path/'far.nii.gz')
    sitk.WriteImage(hu + 1024, tmp_path/'offset.nii.gz')
    shutil.make_archive(tmp_path/'packed', 'zip', ct)
    (tmp_path/'cut.nii.gz').write_bytes((tmp_path/'far.nii.gz').read_bytes()[:-3000])
    shutil.copytree(ct, tmp_path/'two')
    write_original(hu[:, :, ::2], tmp_path/'two'/'second', 'CT')
    write_original(hu[:, :, :1], tmp_path/'scout', 'CT', ImageType=['ORIGINAL', 'PRIMARY', 'LOCALIZER'])
    cases = {'truncated': (spoiled('truncated', lambda p: p.write_bytes(p.read_bytes()[:-500])),
                           mr, 'CT0000.dcm'),
             'header': (spoiled('header', lambda p: p.write_bytes(p.read_bytes()[:600])), mr, 'CT0000.dcm'),
             'cut': (tmp_path/'cut.nii.gz', mr, 'cut.nii.gz'),
             'mixed patients': (spoiled('mixed', lambda p: edit(p, PatientID='OTHER')), mr, '2 patients'),
             'other patient': (ct, spoiled('stranger', strange, mr), '--any-patient'),
             'localiser': (tmp_path/'scout', mr, 'scout'),
             'one slice': (write_original(hu[:, :, :1], tmp_path/'single', 'CT')[0].parent, mr, 'one slice'),
             'two CTs': (tmp_path/'two', mr, '--ct-series'),
             'no overlap': (tmp_path/'far.nii.gz', mr, 'do not overlap'),
             'units': (tmp_path/'offset.nii.gz', mr, 'offset.nii.gz'),
             'zip': (tmp_path/'packed.zip', mr, 'packed.zip is a zip archive'),
             'nothing': (tmp_path/'nowhere', mr, 'nowhere'),
             'a picture': (ct, made[0].parent/'none.png', 'none.png'),
             'transform': (ct, mr, 'no.tfm', '--transform', 'no.tfm'),
             'infinite': (ct, mr, 'not finite', '--transform', tmp_path/'inf.tfm'),
             'cut off': (ct, mr, 'cut.h5', '--transform', tmp_path/'cut.h5'),
             'FLIRT of DICOM': (ct, mr, 'CT is DICOM', '--transform', tmp_path/'flirt.mat'),
             'not labels': (ct, mr, 'half.nii.gz is not a segmentation', '--labels', tmp_path/'half.nii.gz'),
             'foreign labels': (ct, mr, 'voxels of neither', '--labels', tmp_path/'foreign.nii.gz')}
    head = '#Insight Transform File V1.0\n#Transform 0\nTransform: Euler3DTransform_double_3_3\n'
    (tmp_path/'inf.tfm').write_text(f'{head}Parameters: inf 0 0 1 2 3\nFixedParameters: 0 0 0 0\n')
    sitk.WriteTransform(sitk.Euler3DTransform(), str(tmp_path/'whole.h5'))
    (tmp_path/'cut.h5').write_bytes((tmp_path/'whole.h5').read_bytes()[:4000])
    np.savetxt(tmp_path/'flirt.mat', np.eye(4))
    sitk.WriteImage(sitk.Cast(hu > 0, sitk.sitkFloat32)/2, tmp_path/'half.nii.gz')
    sitk.WriteImage((hu > 0)[1:], tmp_path/'foreign.nii.gz')
    before = tree(tmp_path)
    for name, (a, b, text, *more) in cases.items():
        code, out, err = here('medfusion_fuse', a, b, '-o', tmp_path/'out', *FAST, *more)
        assert (code, out) == (2, ''), (name, out, err)
        assert text in err and err.startswith('medfusion_fuse: ') and 'Traceback' not in err, (name, err)
        assert err.count('\n') == 1 or '-series):\n' in err, (name, err)
    assert tree(tmp_path) == before


def test_an_abdomen_is_not_a_head(study, tmp_path, here):
    "The part examined chooses the window, stays in the header, and the network's heads are mentioned."
    for p in study.rglob('CT*'):
        if p.is_file(): edit(p, BodyPartExamined='ABDOMEN')
    code, out, err = here('medfusion_fuse', study, study, '-o', tmp_path/'fused', *FAST)
    assert code == 0, err
    assert 'CT window soft_tissue: the part examined is ABDOMEN' in out and 'trained on heads' in out, out
    for p in (tmp_path/'fused'/'dicom').iterdir():
        assert pydicom.dcmread(p, stop_before_pixels=True).BodyPartExamined == 'ABDOMEN'
    assert json.loads((tmp_path/'fused'/'medfusion.json').read_text())['window'] == [40, 400]


def test_files_without_headers(study, made, tmp_path, here):
    "An upright axial series of nobody and of no part; of the CT's patient where the CT has one."
    t1 = sitk.DICOMOrient(made[1].mri, 'RAS')
    sitk.WriteImage(t1, tmp_path/'t1.nii.gz')
    sitk.WriteImage(sitk.DICOMOrient(made[1].ct, 'AIR'), tmp_path/'head.nii.gz')
    for name, args in dict(nobody=('head.nii.gz', 't1.nii.gz'),
                           patient=(study/'CT', 't1.nii.gz', '--grid', 'mri')).items():
        code, out, err = here('medfusion_fuse', *args, '-o', name, *FAST)
        assert code == 0, err
        slices = [pydicom.dcmread(p) for p in sorted((tmp_path/name/'dicom').iterdir())]
        heights = [s.ImagePositionPatient[2] for s in slices]
        assert heights == sorted(heights) and slices[0].ImageOrientationPatient == [1, 0, 0, 0, 1, 0], name
        assert slices[0].Modality == ('CT' if name == 'nobody' else 'MR')
        assert slices[0].PatientID == ('' if name == 'nobody' else 'PHANTOM')
        assert slices[0].get('BodyPartExamined') == (None if name == 'nobody' else 'HEAD')
        if shutil.which('dciodvfy'):
            judged = subprocess.run(['dciodvfy', first(tmp_path/name/'dicom')], capture_output=True, text=True)
            assert 'Error' not in judged.stderr, judged.stderr


def test_several_are_written_together(hold, study, made, tmp_path):
    "Stopped when both results are written and nothing is in place: nothing is left."
    sitk.WriteImage(made[1].mri, tmp_path/'t2.nii.gz')
    before = tree(tmp_path)
    args = 'study/CT', 'study/MR', 't2.nii.gz', '-o', 'fused', *FAST, '--format', 'nifti'
    p = hold('fused', 'medfusion_fuse', *args, cwd=tmp_path)
    assert {q.parent.name for q in tmp_path.glob('.medfusion_*/*/fused/*/fused.nii.gz')} == {'MR', 't2'}
    p.send_signal(signal.SIGINT)
    assert finish(p)[0] == 130 and tree(tmp_path) == before


def test_what_may_not_be_read_or_written(study, tmp_path):
    if os.geteuid() == 0: pytest.skip('root may read and write everything')
    secret = first(study/'CT')
    secret.chmod(0)
    code, _, err = run('medfusion_fuse', 'study', 'study', '-o', 'out', *FAST, cwd=tmp_path)
    secret.chmod(0o600)
    assert code == 2 and secret.name in one_line(err)
    (tmp_path/'closed').mkdir(mode=0o500)
    code, _, err = run('medfusion_fuse', 'study', 'study', '-o', 'closed/out', *FAST, cwd=tmp_path)
    assert code == 2 and 'closed' in one_line(err.splitlines()[-1] + '\n')


@pytest.mark.parametrize('sign', [signal.SIGKILL, signal.SIGINT])
def test_a_run_is_stopped(hold, study, tmp_path, sign):
    """When all is written and nothing in place: nothing is left half written;
    after kill -9 the same command works."""
    before = tree(tmp_path)
    p = hold('fused', 'medfusion_fuse', 'study', 'study', '-o', 'fused', *FAST, '--png', cwd=tmp_path)
    assert [*tmp_path.glob('.medfusion_*/*/fused/fused.nii.gz')]
    p.send_signal(sign)
    code, out, err = finish(p)
    assert not (tmp_path/'fused').exists() and 'wrote' not in out and 'Traceback' not in err, err
    assert code == (130 if sign == signal.SIGINT else -sign), (code, err)
    if sign == signal.SIGINT: assert tree(tmp_path) == before, 'something was left behind'
    else:
        code, _, err = run('medfusion_fuse', 'study', 'study', '-o', 'fused', *FAST, cwd=tmp_path)
        assert code == 0 and (tmp_path/'fused'/'fused.nii.gz').exists(), err
