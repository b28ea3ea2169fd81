"A cohort on a machine where things die: processes, the scheduler, the command itself."
import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from conftest import finish, start

pytest.importorskip('distributed')
from distributed import Client, wait
from medfusion_nb.cohort import Spread, _result, phantom_cohort
from medfusion_nb.phantom import phantom_volume
from medfusion_nb.volume import write_original

@pytest.fixture(scope='module')
def table(tmp_path_factory):
    "Five phantom studies, the last one without its MRI."
    return phantom_cohort(tmp_path_factory.mktemp('cohort')/'studies', 5, ('missing file',), (80, 80, 40))

def begin(*words, **kwargs): return start('medfusion_cohort', *words, cwd=words[1].parent, **kwargs)
def run(*words, **kwargs): return finish(begin(*words, **kwargs))

def made(out): return sorted(p.parent.name for p in out.glob('*/medfusion.json'))

def wait_for(what, seconds=90):
    begun = time.monotonic()
    while not what():
        assert time.monotonic() - begun < seconds, 'waited too long'
        time.sleep(.05)

def children(process):
    "The processes of Dask that do the work."
    found = psutil.Process(process.pid).children(recursive=True)
    return [p for p in found if 'spawn_main' in ' '.join(p.cmdline())]

def nothing_left(out):
    assert not [p for p in out.rglob('.medfusion_*')], 'a hidden folder was left'

def test_done_is_not_done_again(table, tmp_path):
    out = tmp_path/'out'
    code, said, err = run(table, out, '--workers', 2)
    assert code == 11, err # one study is missing
    assert '4 trusted, 1 failed' in said and 'dashboard: http' in said
    before = {p: p.stat().st_mtime_ns for p in out.glob('*/*')}
    code, said, err = run(table, out, '--json')
    assert code == 11 and json.loads(said)['exit_code'] == 11 and len(json.loads(said)['studies']) == 5
    assert {p: p.stat().st_mtime_ns for p in out.glob('*/*')} == before, err
    code, said, _ = run(table, out, '--dry-run', '--grid', 3)
    assert code == 0 and '4 to fuse, 4 of them again (made with other options)' in said
    rows = [line.split('\t') for line in (out/'cohort.tsv').read_text().splitlines()]
    assert [r[1] for r in rows] == ['status', 'failed', *['trusted']*4] and rows[0][-1] == 'phantom'
    nothing_left(out)

def test_the_command_is_killed(table, tmp_path):
    out = tmp_path/'out'
    process = begin(table, out, '--workers', 2)
    wait_for(lambda: made(out))
    workers = children(process)
    assert len(workers) == 2
    process.kill()
    finish(process)
    whole = made(out)
    assert 1 <= len(whole) < 4 and 'not run' in (out/'cohort.json').read_text()
    psutil.wait_procs(workers, 20)
    assert not [p for p in workers if p.is_running() and p.status() != 'zombie'], 'workers outlive the command'
    before = {name: (out/name/'fused.nii.gz').stat().st_mtime_ns for name in whole}
    code, said, err = run(table, out, '--workers', 1)
    assert code == 11 and f'{len(whole)} done, {4 - len(whole)} to fuse' in said, err
    assert {name: (out/name/'fused.nii.gz').stat().st_mtime_ns for name in whole} == before
    assert len(made(out)) == 4
    nothing_left(out)

def test_a_worker_is_killed(table, tmp_path):
    out = tmp_path/'out'
    process = begin(table, out, '--workers', 2)
    wait_for(lambda: made(out))
    children(process)[0].kill()
    code, said, err = finish(process)
    assert code == 11 and '4 trusted' in said, err
    nothing_left(out)

def test_it_is_interrupted(table, tmp_path):
    out = tmp_path/'out'
    process = begin(table, out, '--workers', 2)
    wait_for(lambda: made(out))
    process.send_signal(signal.SIGTERM)
    code, said, err = finish(process)
    assert code == 143 and 'medfusion_cohort: stopped by SIGTERM\n' in err and 'Traceback' not in err, err
    assert 'not run' in (out/'cohort.json').read_text()

def dask(*words, **env):
    words = [sys.executable, '-m', 'dask', *map(str, words)]
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | env)

@pytest.fixture
def cluster(tmp_path):
    "A scheduler and two workers, as two machines would have them: its process, its address."
    file = tmp_path/'scheduler.json'
    scheduler = dask('scheduler', '--host', '127.0.0.1', '--port', 0, '--dashboard-address', ':0', '--scheduler-file', file)
    wait_for(file.exists)
    where = json.loads(file.read_text())['address']
    one = dict(OMP_NUM_THREADS='1')
    others = [dask('worker', where, '--nthreads', 1, '--host', '127.0.0.1', '--dashboard-address', ':0',
                   '--local-directory', tmp_path/f'w{i}', **one) for i in range(2)]
    yield scheduler, where
    for p in (*others, scheduler):
        p.terminate()
        try: p.wait(20)
        except subprocess.TimeoutExpired: p.kill()

def test_a_cluster_and_its_end(table, tmp_path, cluster):
    scheduler, where = cluster
    out = tmp_path/'out'
    process = begin(table, out, '--scheduler', where)
    wait_for(lambda: made(out))
    scheduler.kill()
    code, said, err = finish(process)
    # of a study that was done as the scheduler died, nobody may have been told
    assert 12 <= code <= 15 and 'not run: the scheduler went away' in said, (code, said, err)
    whole = made(out)
    code, said, err = run(table, out, '--scheduler', where)
    assert code == 2 and 'no Dask scheduler answers' in err and err.count('\n') == 1, err
    code, said, err = run(table, out, '--workers', 0) # what a worker had begun may be done as well
    assert code == 11 and '4 trusted' in said and len(made(out)) == 4 and len(whole) < 4, err

def test_a_result_that_cannot_be_fetched(cluster):
    "A study is done, and the scheduler goes before its record is fetched, when nobody has noticed yet."
    scheduler, where = cluster
    with Client(where, timeout='20s') as client:
        futures = client.map(dict, [[('a', i)] for i in range(8)], pure=False)
        wait(futures)
        assert _result(futures[0], Spread()) == {'a': 0}
        scheduler.kill()
        assert {_result(f, Spread()) for f in futures[1:]} == {None}

def test_shards(table, tmp_path):
    out = tmp_path/'out'
    for k in (1, 2):
        code, said, err = run(table, out, 'participant', '--shard', f'{k}/2', '--workers', 0)
        assert code in (0, 11) and 'with group' in said, err
    assert len(made(out)) == 4 and json.loads((out/'cohort.json').read_text())['studies'][1]['status'] == 'not run'
    code, said, _ = run(table, out, 'group')
    assert code == 11 and '4 trusted, 1 failed' in said

def test_without_dask(table, tmp_path):
    (tmp_path/'distributed.py').write_text('raise ModuleNotFoundError("no", name="distributed")')
    path = f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    code, _, err = run(table, tmp_path/'out', env=dict(PYTHONPATH=path))
    assert code == 2 and "medfusion_nb[cohort]" in err and '--workers 0' in err and err.count('\n') == 1

WORD = 'Zanzibar'

@pytest.fixture(scope='module')
def planted(tmp_path_factory):
    "A table whose headers, folders and files hold a word: a good study, one with a gap, one with two CT."
    home = tmp_path_factory.mktemp('planted')
    tags = dict(PatientName=f'{WORD}^A', PatientID=f'{WORD}7', StudyDescription=WORD, SeriesDescription=f'CT {WORD}',
                InstitutionName=WORD, StudyDate='19870605', PatientBirthDate='19450908')
    head = phantom_volume((72, 72, 36))
    rows = ['subject,ct,mri,site']
    for name in ('good', 'gap', 'two'):
        place = home/f'{WORD} {name}'
        for scan, kind in ((head.ct, 'CT'), (head.mri, 'MR')):
            write_original(scan, place/kind, kind, **tags | dict(SeriesDescription=f'{kind} {WORD}'))
            for p in (place/kind).iterdir(): p.rename(p.with_name(f'{WORD}{p.stem[2:]}.dcm'))
        if name == 'two': write_original(head.ct, place/'CT'/'again', 'CT', **tags)
        if name == 'gap':
            for p in sorted((place/'CT').iterdir())[14:17]: p.unlink()
        rows.append(f'{name},{place.name}/CT,{place.name}/MR,Bern')
    (home/'studies.csv').write_text('\n'.join(rows))
    return home/'studies.csv'

def written(out):
    "All that people and programs read of a result, in one text."
    files = [p for p in out.rglob('*') if p.suffix in ('.html', '.json', '.tsv')]
    return ''.join(p.read_text(encoding='utf-8') for p in files)

def test_no_name_is_told_unless_asked_for(planted, tmp_path):
    for words in ((), ('--identify',)):
        out = tmp_path/f'out{len(words)}'
        code, said, err = run(planted, out, '--workers', 0, *words)
        assert code == 12 and '2 failed' in said, (said, err)
        text = written(out)
        assert 'slices are missing' in text and '2 CT series' in text and 'Bern' in text
        told = [w for w in (WORD, WORD.lower(), str(planted.parent), '19870605', '19450908') if w in text]
        assert bool(told) == bool(words), told
