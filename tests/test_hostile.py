"""Mutated files of every format that is read: what comes back is right, or one line that names the file.

A case is a small file (originals.py) with one to three seeded mutations (mutations.py). A forked worker reads
it with limits on time and memory, so that a crash, a hang or a grab of memory is seen and named. Many cases,
and one by hand:

    pytest tests/test_hostile.py --hostile 10000 --seed 1
    python tests/test_hostile.py nifti --seed 0 --case 17 --folder kept
"""
import argparse
import ctypes
import faulthandler
import gc
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
import warnings
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

NAMES = ('png tiff jpeg bmp dicom series nuclear nifti nrrd metaimage transform zip tar '
         'pth safetensors onnx json').split() # those that need torch come last
UNREAD = 'tar',                  # all of it is refused
SECONDS, HANGS = 2, 60           # of the processor, of the clock: what a case may take
MEMORY, TAKEN = 6 << 30, 1 << 29 # bytes of addresses that a case may ask for, bytes that it may have in use
LETTERS = 500                    # in a message
BATCH = 50                       # cases of a worker
KEPT = 3                         # files of a kind of failure that are kept


# ---- one case

def mutated(name, originals, seed, case):
    "Case of a format: its original, which file was changed, its new content, by what."
    from originals import FORMATS, m
    rng = np.random.default_rng([seed, zlib.crc32(name.encode()), case])
    original = originals[case % len(originals)]
    target = m.pick(rng, original.targets)
    endings = [e for e in FORMATS[name][1] if target.endswith(e)]
    known = FORMATS[name][1][max(endings, key=len)]
    data, how = original.files[target], []
    for _ in range(m.pick(rng, (1, 1, 1, 2, 3))):
        change = m.pick(rng, known if rng.random() < .6 else m.BYTES)
        try: data = change(rng, data)
        except Exception: # what is damaged already cannot be taken apart
            change = m.flip
            data = change(rng, data)
        how.append(change.__name__)
    return original, target, data, '+'.join(how)


def put_files(original, folder, target=None, data=b''):
    "Write an original into a folder, with one file changed."
    for file, content in original.files.items():
        (folder/file).parent.mkdir(parents=True, exist_ok=True)
        (folder/file).write_bytes(data if file == target else content)


def fault_of_refusal(e, original, folder):
    "The kind of failure of an error and why; None for one line that names a file."
    chain, text = [e], str(e)
    while chain[-1] is not None: chain.append(chain[-1].__cause__ or chain[-1].__context__)
    def greedy(e): return isinstance(e, MemoryError) or re.search('bad_alloc|allocate|out of memory', str(e))
    if any(map(greedy, chain[:-1])):
        return 'memory', f'it asked for what the file claims: {chain[-2]}'
    first, *more = text.split('\n') or ['']
    if any(not re.match(r'  \d+: ', line) for line in more): # a list of series has a line for each
        return 'message', f'of {1 + len(more)} lines: {text}'
    if len(first) > LETTERS: return 'message', f'of {len(first)} characters: {text}'
    if not text.replace('\n', '').isprintable(): return 'message', f'with control characters: {text!r}'
    names = folder.name, *[Path(f).name for f in original.files]
    if not any(n in text for n in names): return 'message', f'names no file: {text}'
    return None


def fault_of_result(got, was, original, folder, old, new):
    "What is wrong with what was read: '' where nothing is."
    from originals import placed
    if was is None: return 'the file that it was made of is not read'
    if not np.isfinite(got.values).all(): return 'values that are not numbers'
    if isinstance(got.place, np.ndarray) and (why := placed(got)): return why
    if same(got, was): return ''
    try: old, new = original.plain(old), original.plain(new)
    except Exception: return 'its compressed content is damaged, and yet it was read'
    passed = 'passed over' in str(getattr(got.said, 'notes', '')) # what is no DICOM file any more
    if old.startswith(new) and not passed: return 'it was cut short, and read otherwise than the original'
    at = original.data_at
    if at and len(old) == len(new) and old[:at] == new[:at]: # only values were changed
        if not same(got._replace(values=was.values), was) or got.values.shape != was.values.shape:
            return 'values were changed, and its place differs'
        bytes_off = sum(a != b for a, b in zip(old, new))
        off = np.count_nonzero(got.values != was.values)
        if off > bytes_off: return f'{bytes_off} bytes of values were changed, and {off} values differ'
    try: return original.judge(folder, got, was) if original.judge else ''
    except Exception as e: return f'its judge cannot read it: {type(e).__name__} {e}'


def same(a, b):
    "The same values at the same place?"
    return np.array_equal(a.values, b.values) and bool(np.all(a.place == b.place))


def read(original, folder, fill=0):
    "Read, perhaps with memory that is given out filled: what depends on the filling was never written."
    try: ctypes.CDLL(None).mallopt(-6, fill) # M_PERTURB of glibc
    except AttributeError: pass
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return original.read(folder)


def outcome(original, folder, was, target, data):
    "Read a case: right, refused, or a kind of failure; and why."
    try: got = read(original, folder)
    except (ValueError, OSError) as e: return fault_of_refusal(e, original, folder) or ('refused', '')
    except BaseException as e:
        kind = 'memory' if isinstance(e, MemoryError) else 'traceback'
        frames = traceback.extract_tb(e.__traceback__)
        own = [f for f in frames if 'medfusion_nb' in f.filename] or frames
        return kind, f'{type(e).__name__} in {own[-1].name}: {str(e)[:200]!r}'
    if why := fault_of_result(got, was, original, folder, original.files[target], data): return 'wrong', why
    fill = 1 + zlib.crc32(data) % 255 # not that of the case before, whose memory may come again
    try: differ = not same(got, read(original, folder, fill))
    except Exception: differ = True
    if differ: return 'random', 'two readings differ: memory that was never written'
    return 'right', ''


# ---- a worker

def memory(field):
    "A number of /proc/self/status, in bytes."
    return int(re.search(rf'{field}:\s+(\d+)', Path('/proc/self/status').read_text())[1])*1024


def work(name, originals, truth, seed, cases, folder, out):
    "Read some cases with limits; a line of JSON each."
    faulthandler.disable()
    for sign in (signal.SIGPROF, signal.SIGALRM): signal.signal(sign, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory('VmSize') + MEMORY,)*2)
    with open(os.devnull, 'w') as nowhere:
        for channel in (1, 2): os.dup2(nowhere.fileno(), channel)
    for case in cases:
        place = folder/f'{name}{case}'
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        original, target, data, how = mutated(name, originals, seed, case)
        put_files(original, place, target, data)
        Path('/proc/self/clear_refs').write_text('5') # the peak begins here
        before, begun = memory('VmRSS'), time.process_time()
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        signal.alarm(HANGS)
        kind, why = outcome(original, place, truth.get(original.name), target, data)
        signal.setitimer(signal.ITIMER_PROF, 0)
        taken = memory('VmHWM') - before
        if kind in ('right', 'refused') and taken > TAKEN: kind, why = 'memory', f'{taken >> 20} MB in use'
        took = time.process_time() - begun
        of = f'{original.name}, {target} {how}'
        out.write(json.dumps(dict(case=case, kind=kind, why=why, of=of, seconds=took)) + '\n')
        out.flush()
        if kind in ('right', 'refused'): shutil.rmtree(place)


def batch(*args, cases, **kwargs):
    "Results of a worker; of one that dies, up to the case that it dies of."
    receive, send = os.pipe()
    worker = os.fork()
    if not worker:
        try:
            os.close(receive)
            with os.fdopen(send, 'w') as out: work(*args, cases=cases, out=out, **kwargs)
        except BaseException: Path(kwargs['folder'], 'worker.txt').write_text(traceback.format_exc())
        finally: os._exit(0)
    os.close(send)
    with os.fdopen(receive) as lines: found = [json.loads(line) for line in lines]
    sign = os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])
    if len(found) < len(cases):
        kind = {signal.SIGPROF: 'time', signal.SIGXCPU: 'time', signal.SIGALRM: 'hang'}.get(-sign, 'crash')
        died = signal.Signals(-sign).name if sign < 0 else f'exit {sign}'
        case = cases[len(found)]
        original, target, _, how = mutated(args[0], args[1], args[3], case)
        found.append(dict(case=case, kind=kind, why=died, of=f'{original.name}, {target} {how}', seconds=0.))
    return found


def used():
    "Seconds of the processor, of this process and of its workers."
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def alike(kind, why):
    "What failures of one kind have in common: no numbers, no quotations, no paths."
    if kind != 'traceback': why = why.split(': ')[0]
    return f'{kind}: ' + re.sub(r"'.*'|\S*/\S*|\(.*\)|\[.*\]|-?\d[-+\d.e]*", '#', why)[:90]


def run_cases(name, cases, seed, folder):
    "Every case of a format: the counts by outcome, and the failures by kind with what is kept of them."
    from originals import FORMATS
    originals, truth, failed, counts, begun = [*FORMATS[name][0]()], {}, {}, Counter(), used()
    for o in originals:
        home = folder/f'{name}_original'
        put_files(o, home)
        try:
            truth[o.name] = read(o, home)
            if not same(truth[o.name], read(o, home, 0xaa)): raise ValueError('two readings differ')
        except Exception as e:
            why = f'{type(e).__name__}: {str(e)[:300]}'
            if not o.unread: failed[f'original: {o.name} is not read'] = [1, why]
        shutil.rmtree(home)
    gc.collect()
    gc.freeze()
    cases, slowest = [*cases], 0.
    while cases:
        found = batch(name, originals, truth, seed, cases=cases[:BATCH], folder=folder)
        cases = cases[len(found):]
        for r in found:
            counts[r['kind']] += 1
            slowest = max(slowest, r['seconds'])
            if r['kind'] in ('right', 'refused'): continue
            group = failed.setdefault(alike(r['kind'], r['why']), [0])
            group[0] += 1
            if len(group) <= KEPT: group.append(f"case {r['case']}: {r['of']}: {r['why'][:300]}")
            else: shutil.rmtree(folder/f"{name}{r['case']}", ignore_errors=True)
    return dict(counts=counts, failed=failed, seconds=used() - begun, slowest=slowest)


def told(name, seed, found):
    "Counts of a format in a line."
    counts = ', '.join(f'{n} {kind}' for kind, n in found['counts'].most_common())
    return f"hostile {name}, seed {seed}: {counts} ({found['seconds']:.0f} s)"


# ---- pytest: one fresh process reads everything, with one thread

@pytest.fixture(scope='module')
def reader():
    "Asks for a format, a number, a seed and a folder; gives what run_cases gives."
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS': '1',
           'HF_HUB_OFFLINE': '1', 'MPLBACKEND': 'agg'}
    env.pop('MEDFUSION_DATA', None)
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    process = subprocess.Popen([sys.executable, __file__], env=env, **pipes)
    def ask(*request):
        process.stdin.write(json.dumps(request) + '\n')
        process.stdin.flush()
        return json.loads(process.stdout.readline())
    yield ask
    process.stdin.close()
    process.wait(60)


@pytest.mark.skipif(sys.platform != 'linux', reason='limits and the filling of memory are those of Linux')
@pytest.mark.parametrize('name', NAMES)
def test_hostile(name, reader, tmp_path, request, record_property):
    number, seed = (request.config.getoption(o) for o in ('--hostile', '--seed'))
    found = reader(name, number, seed, str(tmp_path))
    found['counts'] = Counter(found['counts'])
    record_property('told', told(name, seed, found))
    lines = ['\n    '.join([f'{n} x {kind}', *examples]) for kind, (n, *examples) in found['failed'].items()]
    assert not lines, '\n'.join([told(name, seed, found), f'kept in {tmp_path}', *lines])
    shown = {kind for kind, n in found['counts'].items() if n}
    assert shown == ({'refused'} if name in UNREAD else {'right', 'refused'}), 'the mutations show nothing'


def serve():
    "Answer requests, a line of JSON each, until there are no more."
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)
    for line in sys.stdin:
        name, number, seed, folder = json.loads(line)
        print(json.dumps(run_cases(name, range(number), seed, Path(folder))), file=answers, flush=True)


def by_hand():
    "Options of the command line."
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('name', choices=NAMES)
    parser.add_argument('-n', type=int, default=300, help='cases')
    parser.add_argument('--case', type=int, help='one case')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--folder', type=Path, default=Path('hostile'), help='keeps the files that fail')
    a = parser.parse_args()
    found = run_cases(a.name, range(a.n) if a.case is None else [a.case], a.seed, a.folder)
    for kind, (n, *examples) in found['failed'].items(): print(n, 'x', kind, *examples, sep='\n    ')
    print(told(a.name, a.seed, found), f"slowest {found['slowest']:.2f} s")


if __name__ == '__main__': by_hand() if sys.argv[1:] else serve()
