"""What a notebook cannot hold: processes, signals, faults, the commands as a shell sees them, the wheel."""
import os
import signal
import subprocess
import sys
import time
import warnings
from importlib.metadata import entry_points
from pathlib import Path

import cv2
import numpy as np
import pytest

from medfusion_nb.data import write_image
from medfusion_nb.phantom import phantom_pair

BIN = Path(sys.executable).parent


def pytest_addoption(parser):
    parser.addoption('--all-notebooks', action='store_true',
                     help='run every notebook in JupyterLab, not only the viewer and one more')
    parser.addoption('--hostile', type=int, default=300, metavar='N',
                     help='mutated files a format; the examples of geometry grow alike (default %(default)s)')
    parser.addoption('--seed', type=int, default=0, help='of the mutations (default %(default)s)')


def pytest_terminal_summary(terminalreporter):
    "What tests told with record_property('told', ...)."
    for outcome in ('passed', 'failed'):
        for report in terminalreporter.stats.get(outcome, []):
            for key, line in report.user_properties:
                if key == 'told': terminalreporter.write_line(line)


def start(command, *args, cwd, env=None, preexec_fn=None, **kwargs):
    """A command of the package as a process of its own: no real data, one thread,
    no network to fall back on, and Ctrl-C as in a terminal."""
    def prepare(): # a shell's background jobs ignore Ctrl-C, and so would their children
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if preexec_fn: preexec_fn()
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'MPLBACKEND': 'agg',
           'https_proxy': 'http://127.0.0.1:9', 'HF_HUB_OFFLINE': '1', **(env or {})}
    env.pop('MEDFUSION_DATA', None)
    program = [str(BIN/command)] if command.startswith('medfusion') else [sys.executable, command]
    return subprocess.Popen([*program, *map(str, args)], cwd=cwd, env=env, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, preexec_fn=prepare, **kwargs)


def finish(process, timeout=300):
    "Exit code, standard output, standard error."
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


def run(command, *args, **kwargs):
    "Start and finish."
    return finish(start(command, *args, **kwargs))


def together(**processes):
    "Names and results of processes that run side by side: most of their time is the import of torch."
    return [(name, finish(p)) for name, p in processes.items()]


def wait_for(condition, process, timeout=300):
    "Poll until the condition holds while the process is at work; fail with its output when it ends before."
    end = time.monotonic() + timeout
    while not condition():
        if process.poll() is not None:
            pytest.fail(f'ended too early, exit code {process.returncode}: {process.communicate()}')
        if time.monotonic() > end:
            process.kill()
            pytest.fail(f'nothing happened in {timeout} s: {process.communicate()}')
        time.sleep(.01)


HOLD = '''
import os, sys, time
name, times = os.environ['HOLD'], int(os.environ['HOLD_TIMES'])
def hold(event, args):
    global times
    if event == 'os.rename' and os.path.basename(os.fspath(args[1])) == name:
        times -= 1
        if times == 0:
            open(os.environ['HELD'], 'w').close()
            for _ in range(6000): # a signal that waits does not end the sleep
                if os.path.exists(os.environ['HELD'] + '.go'): break
                time.sleep(.1)
sys.addaudithook(hold)
'''


@pytest.fixture
def hold(tmp_path_factory):
    """Starts a command and waits until it is about to move a file or folder of that name into place
    (for the nth time), where it then sleeps until `go()` of it is called."""
    def start_and_hold(name, command, *args, cwd, times=1):
        folder = tmp_path_factory.mktemp('hold')
        (folder/'sitecustomize.py').write_text(HOLD)
        path = os.pathsep.join(filter(None, [str(folder), os.environ.get('PYTHONPATH')]))
        env = dict(PYTHONPATH=path, HOLD=name, HOLD_TIMES=str(times), HELD=str(folder/'held'))
        p = start(command, *args, cwd=cwd, env=env)
        wait_for((folder/'held').exists, p)
        p.go = (folder/'held.go').touch
        return p
    return start_and_hold


@pytest.fixture
def here(capfd, monkeypatch, tmp_path):
    """Runs a command within this process, in the test's folder and without real data,
    warnings shown as a process shows them: exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('MEDFUSION_DATA', raising=False)
    def run_here(command, *args):
        [script] = entry_points(group='console_scripts', name=command)
        monkeypatch.setattr(sys, 'argv', [command, *map(str, args)])
        capfd.readouterr()
        with warnings.catch_warnings(): # pytest collects them, and lets those about deprecation through
            def show(message, category, file, line, *_):
                sys.stderr.write(warnings.formatwarning(message, category, file, line))
            warnings.showwarning = show
            for kind in (DeprecationWarning, PendingDeprecationWarning): warnings.simplefilter('ignore', kind)
            warnings.filterwarnings('ignore', module=r'pydicom\.') # as medfusion_nb.volume does
            try:
                script.load()()
                code = 0
            except SystemExit as e: code = e.code or 0
        return code, *capfd.readouterr()
    return run_here


def one_line(err, command='medfusion_fuse'):
    "Asserts that an error is a single line that names the command, and gives it."
    assert err.count('\n') == 1 and err.startswith(f'{command}: '), err
    return err


def image(path):
    "Pixels of a file that must be a whole image."
    img = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert img is not None, f'{path}: not a whole image'
    return img


def tree(folder):
    "Every file below a folder with its content."
    files = [p for p in sorted(Path(folder).rglob('*')) if p.is_file()]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def write_pairs(folder, n, size=128):
    "CT and MRI folders with n phantoms, names with blanks and letters beyond ASCII."
    phantom = phantom_pair(size, seed=1)
    for i in range(n):
        for kind, img in (('CT', phantom.ct), ('MRI', phantom.mri)):
            write_image(folder/kind/f'Schnitt ä{i:02d}.png', np.roll(img, 3*i, 1))
    return folder/'CT', folder/'MRI'


def write_llvip(folder, size=64):
    "Four visible-infrared pairs to learn from and two to validate on, in LLVIP's layout."
    for split, seeds in dict(train=range(4), test=(4, 5)).items():
        for i in seeds:
            phantom = phantom_pair(size, seed=i)
            for kind, img in (('visible', phantom.mri), ('infrared', phantom.ct)):
                write_image(folder/kind/split/f'{i}.png', img)
    return folder


@pytest.fixture
def pair(tmp_path):
    "Files ct.png and mri.png in the test's folder."
    phantom = phantom_pair(128, seed=1)
    return [write_image(tmp_path/f'{k}.png', img) for k, img in (('ct', phantom.ct), ('mri', phantom.mri))]
