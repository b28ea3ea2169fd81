"""Killed in the middle: no file is half written, and the same command finishes the work."""
import signal

import pandas as pd
import pytest
import torch
from conftest import finish, image, run, start, tree, write_llvip, write_pairs

from medfusion_nb.model import load_checkpoint, read_checkpoint

PRETRAIN = ['llvip', '--epochs', 2, '--crop', 32, '--backbone', 'resnet18', '--imagenet', 'no',
            '--lr', '1e-3']


@pytest.mark.parametrize('sign', [signal.SIGKILL, signal.SIGINT])
def test_fuse_is_stopped(hold, tmp_path, sign):
    "While the third of six images is written, two of which would replace older ones."
    ct, mri = write_pairs(tmp_path, 6)
    old = {p.name: b'mine' for p in sorted(ct.iterdir())[:2]}
    (tmp_path/'fused').mkdir()
    for name, content in old.items(): (tmp_path/'fused'/name).write_bytes(content)
    p = hold('Schnitt ä02.png', 'medfusion_fuse', 'CT', 'MRI', '-o', 'fused', '--force', cwd=tmp_path)
    written = [*tmp_path.glob('fused/.medfusion_*/[01]/*.png')]
    assert len(written) == 2, 'it was stopped too early to show anything'
    p.send_signal(sign)
    code, out, err = finish(p)
    assert out == '' and 'Traceback' not in err, err
    assert code == (130 if sign == signal.SIGINT else -sign), (code, err)
    there = {f.name: f.read_bytes() for f in (tmp_path/'fused').glob('*.png')}
    assert there == old, 'the old results were touched'
    if sign == signal.SIGINT: assert tree(tmp_path/'fused') == old, 'something was left behind'
    if sign == signal.SIGKILL:
        code, out, err = run('medfusion_fuse', 'CT', 'MRI', '-o', 'fused', '--force', cwd=tmp_path)
        assert code == 0, err
        assert len([image(f) for f in (tmp_path/'fused').glob('*.png')]) == 6


def check_whole(folder):
    "Every visible file of a run is readable; gives their names."
    files = [p for p in folder.iterdir() if not p.name.startswith('.')]
    for p in files:
        if p.suffix == '.pth': read_checkpoint(p)
        elif p.suffix == '.png': image(p)
        else: assert not pd.read_csv(p).isna().any().any(), p
    return {p.name for p in files}


def test_training_is_stopped_and_resumes_exactly(hold, tmp_path):
    """kill -9 while the first checkpoint is written, Ctrl-C while that of the second epoch is:
    the end is that of the run nobody touched, bit for bit."""
    write_llvip(tmp_path/'llvip')
    untouched = start('medfusion_pretrain', *PRETRAIN, '--out', 'untouched', cwd=tmp_path)
    out = tmp_path/'stopped'
    p = hold('last.pth', 'medfusion_pretrain', *PRETRAIN, '--out', out.name, cwd=tmp_path)
    p.kill()
    assert finish(p)[0] == -signal.SIGKILL
    started = [*out.glob('.medfusion_*/0/last.pth')]
    assert check_whole(out) <= {'fusion_model_fixed.pth'} and started, 'it was not killed while it wrote'

    p = hold('last.pth', 'medfusion_pretrain', *PRETRAIN, '--out', out.name, cwd=tmp_path, times=2)
    p.send_signal(signal.SIGINT)
    code, _, err = finish(p)
    assert code == 130 and 'Traceback' not in err, err
    assert check_whole(out) == {'last.pth', 'history.csv', 'fusion_model_fixed.pth', 'training_curves.png'}
    assert len(pd.read_csv(out/'history.csv')) == 1

    code, _, err = run('medfusion_pretrain', *PRETRAIN, '--out', out.name, cwd=tmp_path)
    assert code == 0, err
    code, _, err = finish(untouched)
    assert code == 0, err
    a, b = (read_checkpoint(tmp_path/d/'last.pth') for d in ('untouched', 'stopped'))
    assert a['history'] == b['history'] and len(a['history']) == 2
    for k, v in a['model_state_dict'].items(): assert torch.equal(v, b['model_state_dict'][k]), k
    files = [tmp_path/d/'fusion_model_fixed.pth' for d in ('untouched', 'stopped')]
    best = [load_checkpoint(f).state_dict() for f in files]
    for k, v in best[0].items(): assert torch.equal(v, best[1][k]), k
