"""Killed, stopped, or without disk: no file is half written, and the next run finishes the work.

`MEDFUSION_PLACES=200 pytest tests/test_faults.py -k places` tries 200 places; CI a few.
"""
import json
import os
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from conftest import finish, image, one_line, run, tree, write_llvip, write_pairs
from places import volumes

from medfusion_nb.core import staged

PLACES = int(os.environ.get('MEDFUSION_PLACES', 8))


def test_places(tmp_path):
    "Fusing images and volumes, training, fetching (and evaluating, where there are 20 places or more)."
    program = [sys.executable, Path(__file__).with_name('places.py'), tmp_path, str(PLACES), '27']
    env = dict(os.environ, OMP_NUM_THREADS='1', MPLBACKEND='agg')
    done = subprocess.run(program, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    print(found['counts'])
    assert not found['failed'], found['failed']
    assert sum(found['counts'].values()) >= min(PLACES, 8)


@pytest.mark.parametrize('sign', [signal.SIGKILL, signal.SIGTERM])
def test_fuse_is_stopped_while_it_moves(hold, tmp_path, sign):
    "Two of six images are in place, and have replaced older ones."
    ct, mri = write_pairs(tmp_path, 6, size=48)
    old = {p.name: b'mine' for p in sorted(ct.iterdir())[:2]}
    (tmp_path/'fused').mkdir()
    for name, text in old.items(): (tmp_path/'fused'/name).write_bytes(text)
    fuse = 'medfusion_fuse', 'CT', 'MRI', '-o', 'fused', '--force'
    p = hold('Schnitt ä02.png', *fuse, cwd=tmp_path)
    if sign == signal.SIGTERM:
        code, out, err = run(*fuse, cwd=tmp_path)
        assert code == 2 and 'another run is writing' in one_line(err), err
    p.send_signal(sign)
    p.go()
    code, out, err = finish(p)
    assert code == (143 if sign == signal.SIGTERM else -sign) and 'Traceback' not in err, (code, err)
    hidden = [f.name for f in (tmp_path/'fused').iterdir() if f.name.startswith('.')]
    if sign == signal.SIGKILL:
        assert len(hidden) == 2 and len(tree(tmp_path/'fused')) > 6
        with staged(tmp_path/'fused'/'another.txt') as part: part.write_text('') # any next run there
        (tmp_path/'fused'/'another.txt').unlink()
        assert sorted(tree(tmp_path/'fused')) == sorted(p.name for p in ct.iterdir()), 'the moves were not finished'
        for f in (tmp_path/'fused').iterdir(): image(f)
    else: assert tree(tmp_path/'fused') == old, 'what was moved did not come back'


def test_what_is_in_the_way(here, pair, tmp_path):
    "Nothing is written where one of several files cannot be."
    (tmp_path/'out_attention.png').mkdir()
    code, _, err = here('medfusion_fuse', *pair, '-o', 'out.png', '--figure', '--attention')
    assert code == 2 and 'out_attention.png is a folder' in one_line(err)
    (tmp_path/'link.png').symlink_to(pair[0])
    before = tree(tmp_path)
    code, _, err = here('medfusion_fuse', *pair, '-o', 'link.png', '--force')
    assert code == 2 and 'is a symbolic link' in one_line(err) and tree(tmp_path) == before
    code, _, err = here('medfusion_fuse', *pair, '-o', pair[0]/'below'/'a.png')
    assert code == 2 and 'choose another place' in one_line(err)
    longest = 'n'*251 + '.png'
    assert here('medfusion_fuse', *pair, '-o', longest)[0] == 0 and image(tmp_path/longest) is not None


@pytest.mark.skipif(sys.platform == 'win32', reason='no such modes')
def test_modes(tmp_path):
    "As any new file has, but closed where the folder is; a file that is replaced keeps its own."
    closed, shared = tmp_path/'closed', tmp_path/'shared'
    closed.mkdir(0o700)
    shared.mkdir()
    shared.chmod(0o755)
    before = os.umask(0o022)
    try:
        for folder, mode in ((closed, 0o600), (shared, 0o644)):
            with staged([folder/'a', folder/'b']) as parts:
                for p in parts.values(): p.touch(0o600)
            assert [(folder/n).stat().st_mode & 0o777 for n in 'ab'] == [mode]*2
        (shared/'a').chmod(0o640)
        with staged(shared/'a') as part: part.write_text('new')
        assert (shared/'a').stat().st_mode & 0o777 == 0o640
        with staged(closed/'run', folder=True) as part: (part/'x').write_text('')
        assert (closed/'run').stat().st_mode & 0o777 == 0o700
    finally: os.umask(before)


@pytest.fixture
def disk(tmp_path):
    "A small disk, where this process may mount one: `disk(options)` mounts it again."
    place = tmp_path/'disk'
    place.mkdir()
    def mount(*options): return subprocess.run(['mount', *options, place], capture_output=True).returncode
    if sys.platform != 'linux' or mount('-t', 'tmpfs', '-o', 'size=300k', 'tmpfs'): pytest.skip('nothing can be mounted')
    mount.place = place
    yield mount
    subprocess.run(['umount', '-l', place])


def test_a_full_disk_and_one_that_cannot_be_written(disk, here, pair, tmp_path):
    "One line; nothing is left; with more room training goes on."
    write_llvip(tmp_path/'llvip', size=32)
    train = 'medfusion_pretrain', 'llvip', '--epochs', 1, '--crop', 32, '--network', 'compact', '--out', 'disk/run'
    code, _, err = here(*train)
    assert code == 2 and 'no space left to write disk/run' in one_line(err, 'medfusion_pretrain')
    assert tree(disk.place) == {}
    assert disk('-o', 'remount,size=30m') == 0
    code, _, err = here(*train)
    assert code == 0 and len(tree(disk.place)) == 4, err
    before = tree(disk.place)
    assert disk('-o', 'remount,ro') == 0
    code, _, err = here('medfusion_fuse', *pair, '-o', 'disk/fused.png')
    assert code == 2 and 'cannot write into' in one_line(err) and 'Read-only' in err and tree(disk.place) == before


def test_leftovers(tmp_path):
    "Only what a dead run left is removed: not a folder that looks similar, nor a planted link."
    similar, empty, planted, aim = (tmp_path/n for n in ('.medfusion_notes123', '.medfusion_abcdefgh', '.medfusion_12345678', 'aim'))
    similar.mkdir()
    empty.mkdir()
    (empty/'mine.txt').write_text('mine')
    (empty/'.lock').write_text('of another program')
    aim.mkdir(0o700)
    (aim/'.lock').write_bytes(b'medfusion_nb writes\0a.txt')
    planted.symlink_to(aim)
    with staged(tmp_path/'a.txt') as part: part.write_text('a')
    assert (empty/'mine.txt').exists() and (aim/'.lock').exists() and planted.is_symlink() and similar.is_dir()
    code = 'import os, sys\nfrom medfusion_nb.core import staged\n' \
           'with staged(sys.argv[1]) as part: part.write_text("half"); os.kill(os.getpid(), 9)'
    assert subprocess.run([sys.executable, '-c', code, tmp_path/'b.txt']).returncode == -9
    left = [p for p in tmp_path.glob('.medfusion_*') if p not in (similar, empty, planted)]
    assert len(left) == 1 and not (tmp_path/'b.txt').exists()
    with staged(tmp_path/'c.txt') as part: part.write_text('c')
    assert not left[0].exists()


def test_sources_that_change(here, pair, tmp_path, monkeypatch):
    "A source that is written again meanwhile is named, and nothing is written."
    module = import_module('medfusion_nb.fuse') # the name in the package is that of a function
    read = module.read_pair
    def and_change(ct, mri, *args):
        got = read(ct, mri, *args)
        os.utime(ct)
        return got
    monkeypatch.setattr(module, 'read_pair', and_change)
    code, _, err = here('medfusion_fuse', *pair, '-o', 'out.png')
    assert code == 2 and 'ct.png changed while it was read' in one_line(err)
    assert not (tmp_path/'out.png').exists() and not [*tmp_path.glob('.*')]


def test_one_file_of_a_volume(here, tmp_path):
    "What only a folder holds is refused; files of an earlier run go; a file that is not ours does not."
    volumes(tmp_path)
    fuse = 'medfusion_fuse', 'study/CT', 'study/MR', '-o', 'a.nii.gz', '--register', 'never'
    for option in (['--png'], ['--figure'], ['--contact-sheet'], ['--deidentify'], ['--format', 'dicom']):
        code, _, err = here(*fuse, *option)
        assert code == 2 and ' '.join(option) in one_line(err) and not (tmp_path/'a.nii.gz').exists()
    assert here(*fuse, '--transform', 't.tfm', '--labels', 'labels.nii.gz')[0] == 0
    assert {p.name for p in tmp_path.glob('a*')} == {'a.nii.gz', 'a_transform.tfm', 'a_labels.nii.gz'}
    before = tree(tmp_path)
    code, _, err = here(*fuse)
    assert code == 2 and 'exists' in one_line(err) and tree(tmp_path) == before
    refused = tmp_path/'a_refused'
    refused.mkdir()
    for name in ('candidate.tfm', 'medfusion.json'): (refused/name).write_text('{}')
    code, _, err = here(*fuse, '--force')
    assert code == 0 and {p.name for p in tmp_path.glob('a*')} == {'a.nii.gz'}, err
    (tmp_path/'a_labels.nii.gz').write_bytes((tmp_path/'labels.nii.gz').read_bytes()[:100])
    code, _, err = here(*fuse, '--force')
    assert code == 2 and 'a_labels.nii.gz would look like a part' in one_line(err)
    code, _, err = here(*fuse[:4], '.')
    assert code == 2 and len(one_line(err)) < 400, err


def test_rank(here, pair):
    "A variable that a scheduler left does not silence a command."
    os.environ['RANK'] = '1'
    try: code, out, _ = here('medfusion_fuse', *pair, '-o', 'out.png')
    finally: del os.environ['RANK']
    assert code == 0 and 'wrote out.png' in out
