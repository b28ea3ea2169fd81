"""The commands as a shell sees them: exit codes, output, files."""
import resource

import numpy as np
import pytest
from conftest import finish, image, one_line, run, start, tree, write_pairs

from medfusion_nb.data import phantom_pair, read_image, write_image
from medfusion_nb.fuse import fuse

COMMANDS = ('fuse', 'pretrain', 'finetune', 'evaluate', 'benchmark')


def test_every_command_explains_itself(tmp_path):
    processes = {c: start(f'medfusion_{c}', '--help', cwd=tmp_path) for c in COMMANDS}
    for c, p in processes.items():
        code, out, err = finish(p)
        assert (code, err) == (0, ''), (c, err)
        assert 'usage: ' in out and f'medfusion_{c}' in out, out
    assert not tree(tmp_path)


def test_no_arguments_fuse_the_phantom(tmp_path):
    code, out, err = run('medfusion_fuse', cwd=tmp_path)
    assert code == 0 and 'Traceback' not in err, err
    assert 'fused.png' in out
    assert list(tree(tmp_path)) == ['fused.png']
    img, phantom = image(tmp_path/'fused.png'), phantom_pair(256)
    assert img.dtype == np.uint8 and img.shape == (256, 256)
    air = np.maximum(phantom.ct, phantom.mri) == 0
    assert img[air].max() == 0, 'the background is not black'
    assert img[phantom.masks['skull']].mean() > 150, 'the bone of the CT is missing'
    assert np.corrcoef(img[phantom.masks['grey_matter'] | phantom.masks['csf']], phantom.mri[phantom.masks['grey_matter'] | phantom.masks['csf']])[0, 1] > .7, 'the tissue of the MRI is missing'


def test_overwrites_only_with_force(tmp_path):
    (tmp_path/'fused.png').write_bytes(b'mine')
    code, out, err = run('medfusion_fuse', cwd=tmp_path)
    assert (code, out) == (2, '')
    assert 'fused.png' in one_line(err) and '--force' in err
    assert tree(tmp_path) == {'fused.png': b'mine'}
    code, out, err = run('medfusion_fuse', '--force', cwd=tmp_path)
    assert code == 0, err
    assert image(tmp_path/'fused.png').std() > 30 and list(tree(tmp_path)) == ['fused.png']


def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, pair):
    ct, mri = pair
    broken, small = tmp_path/'broken.png', write_image(tmp_path/'small.png', read_image(mri)[:100])
    broken.write_bytes(mri.read_bytes()[:-200])
    before = tree(tmp_path)
    cases = {'nowhere.png': (ct, 'nowhere.png'), 'broken.png': (ct, broken), 'small.png': (ct, small), 'MRI': (ct,)}
    processes = {name: start('medfusion_fuse', *args, '-o', 'out.png', cwd=tmp_path) for name, args in cases.items()}
    for name, p in processes.items():
        code, out, err = finish(p)
        assert (code, out) == (2, ''), (name, out, err)
        assert name in one_line(err), err
    assert tree(tmp_path) == before


@pytest.mark.parametrize('command', ['pretrain', 'finetune', 'evaluate'])
def test_other_commands_name_a_missing_folder(tmp_path, command):
    code, out, err = run(f'medfusion_{command}', tmp_path/'nowhere', cwd=tmp_path)
    assert code == 2, (out, err)
    assert 'nowhere' in one_line(err, f'medfusion_{command}')


def test_folders(tmp_path):
    ct, mri = write_pairs(tmp_path, 3)
    code, out, err = run('medfusion_fuse', 'CT', 'MRI', '-o', 'fused', '--bits', '16', '--figure', cwd=tmp_path)
    assert code == 0, err
    names = [p.name for p in sorted(ct.iterdir())]
    assert sorted(p.name for p in (tmp_path/'fused').glob('*.png')) == names
    assert sorted(p.name for p in (tmp_path/'fused'/'figure').iterdir()) == names
    for name in names:
        img = image(tmp_path/'fused'/name)
        assert img.dtype == np.uint16 and img.shape == (128, 128)
        assert np.abs(img/65535 - fuse(ct/name, mri/name)).max() < 2e-3  # threads differ between the processes
    before = tree(tmp_path)
    (mri/names[1]).unlink()
    code, out, err = run('medfusion_fuse', 'CT', 'MRI', '-o', 'again', cwd=tmp_path)
    assert code == 2 and names[1] in one_line(err)
    assert tree(tmp_path) == {k: v for k, v in before.items() if k != f'MRI/{names[1]}'}


def test_a_full_disk_leaves_nothing(tmp_path, pair):
    "A limit on the size of a file stands in for a disk that fills up while the image is written."
    def limit(): resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
    before = tree(tmp_path)
    code, out, err = finish(start('medfusion_fuse', *pair, '-o', 'out.png', cwd=tmp_path, env=dict(PYTHONDONTWRITEBYTECODE='1'), preexec_fn=limit))
    assert (code, out) == (2, ''), err
    assert 'out.png' in err.splitlines()[-1] or 'too large' in err.splitlines()[-1], err
    assert tree(tmp_path) == before
