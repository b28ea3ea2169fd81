"""Killed in the middle: no file is half written, and the same command finishes the work."""
import os
import signal

import pandas as pd
import pytest
import torch
from conftest import finish, image, run, start, tree, wait_for, write_pairs

from medfusion_nb.model import load_checkpoint, read_checkpoint

PRETRAIN = ['--epochs', 3, '--crop', 64, '--backbone', 'resnet18', '--imagenet', 'no', '--lr', '1e-3']


def staged(folder): return [p for d in folder.glob('.medfusion_*') for p in d.iterdir()]


@pytest.mark.parametrize('sign', [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_fuse_is_stopped(tmp_path, sign):
    ct, mri = write_pairs(tmp_path, 30)
    old = {p.name: b'mine' for p in sorted(ct.iterdir())[:2]}
    (tmp_path/'fused').mkdir()
    for name, content in old.items(): (tmp_path/'fused'/name).write_bytes(content)
    p = start('medfusion_fuse', 'CT', 'MRI', '-o', 'fused', '--force', cwd=tmp_path)
    wait_for(lambda: len(staged(tmp_path)) >= 2, p)
    p.send_signal(sign)
    code, out, err = finish(p)
    assert out == '' and 'Traceback' not in err, err
    assert code == (130 if sign == signal.SIGINT else -sign), (code, err)
    assert tree(tmp_path/'fused') == old, 'the old results were touched'
    if sign == signal.SIGINT: assert not list(tmp_path.glob('.medfusion_*')), 'the stage was left behind'
    if sign == signal.SIGKILL:
        code, out, err = run('medfusion_fuse', 'CT', 'MRI', '-o', 'fused', '--force', cwd=tmp_path)
        assert code == 0, err
        assert len([image(f) for f in (tmp_path/'fused').glob('*.png')]) == 30


def epochs(folder):
    "Epochs in the history of a run."
    try: return len(pd.read_csv(folder/'history.csv'))
    except FileNotFoundError: return 0


def check_whole(folder):
    "Every visible file of a run is readable."
    files = [p for p in folder.iterdir() if not p.name.startswith('.')]
    for p in files:
        if p.suffix == '.pth': read_checkpoint(p)
        elif p.suffix == '.png': image(p)
        elif p.suffix == '.csv': assert not pd.read_csv(p).isna().any().any()
        else: raise AssertionError(f'unexpected file {p}')
    assert {'last.pth', 'history.csv', 'fusion_model_fixed.pth'} <= {p.name for p in files}


def test_training_is_stopped_and_resumes_exactly(tmp_path):
    "kill -9 in the second epoch, Ctrl-C in the third: the end is that of the run nobody touched, bit for bit."
    untouched = start('medfusion_pretrain', *PRETRAIN, '--out', 'untouched', cwd=tmp_path)
    run_dir = tmp_path/'stopped'
    for done, sign in ((1, signal.SIGKILL), (2, signal.SIGINT)):
        p = start('medfusion_pretrain', *PRETRAIN, '--out', run_dir.name, cwd=tmp_path)
        wait_for(lambda: epochs(run_dir) >= done, p)
        p.send_signal(sign)
        code, out, err = finish(p)
        assert code == (130 if sign == signal.SIGINT else -sign), err
        assert epochs(run_dir) < 3, 'it was stopped too late to show anything'
        check_whole(run_dir)
    code, out, err = run('medfusion_pretrain', *PRETRAIN, '--out', run_dir.name, cwd=tmp_path)
    assert code == 0, err
    code, out, err = finish(untouched)
    assert code == 0, err
    a, b = (read_checkpoint(tmp_path/d/'last.pth') for d in ('untouched', 'stopped'))
    assert a['history'] == b['history'] and len(a['history']) == 3
    for k, v in a['model_state_dict'].items(): assert torch.equal(v, b['model_state_dict'][k]), k
    best = [load_checkpoint(tmp_path/d/'fusion_model_fixed.pth').state_dict() for d in ('untouched', 'stopped')]
    for k, v in best[0].items(): assert torch.equal(v, best[1][k]), k


def test_training_is_killed_while_it_writes(tmp_path):
    "kill -9 at the end of the first epoch, while a checkpoint is being written: what can be seen is whole."
    out = tmp_path/'run'
    p = start('medfusion_pretrain', *PRETRAIN, '--out', out.name, cwd=tmp_path)
    wait_for(lambda: out.exists() and any(f.name.startswith('.') for f in out.iterdir()), p)
    os.kill(p.pid, signal.SIGKILL)
    finish(p)
    visible = [f for f in out.iterdir() if not f.name.startswith('.')]
    assert all(f.suffix == '.pth' for f in visible), visible
    for f in visible: read_checkpoint(f)
