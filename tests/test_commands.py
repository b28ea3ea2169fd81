"""The commands as a shell sees them: exit codes, output, files."""
import json
import re
import resource
from pathlib import Path

import numpy as np
from conftest import finish, image, one_line, run, start, tree, write_llvip, write_pairs
from scipy.ndimage import maximum_filter

from medfusion_nb import __version__
from medfusion_nb.core import EXIT_CODES
from medfusion_nb.data import read_image, write_image
from medfusion_nb.phantom import phantom_pair
from medfusion_nb.model import CompactNet, read_checkpoint, save_checkpoint
from medfusion_nb.fuse import fuse

README = Path(__file__).resolve().parents[1]/'README.md'
COMMANDS = ('fuse', 'cohort', 'export', 'pretrain', 'finetune', 'evaluate', 'benchmark', 'data')


def test_every_command_explains_itself(tmp_path, here):
    "Each `--help`, and every option that the README's commands use is in it."
    usage = {}
    for command in COMMANDS:
        code, out, err = here(f'medfusion_{command}', '--help')
        assert (code, err) == (0, ''), (command, err)
        assert out.startswith(f'usage: medfusion_{command} ') and out.rstrip().endswith(EXIT_CODES), out
        assert re.search(rf'^example:\n  medfusion_{command}\b', out, re.M) or command == 'data', \
            f'{command} shows no example'
        # one style: dashes, defaults as one would type them
        assert not re.search(r'--\w+_|default: (None|False|\()', out), out
        usage[f'medfusion_{command}'] = out
    code, out, err = here('medfusion_data', 'fetch', '--help') # options of an action
    assert (code, err) == (0, '') and re.search(r'^example:\n  medfusion_data fetch', out, re.M), err
    usage['medfusion_data'] += out
    assert not tree(tmp_path)
    shell = '\n'.join(re.findall(r'^```sh\n(.*?)^```$', README.read_text(encoding='utf-8'), re.M|re.S))
    lines = [line.split() for line in shell.splitlines() if line.startswith('medfusion_')]
    assert {command for command, *_ in lines} == set(usage)
    for command, *words in lines:
        for option in (w for w in words if w.startswith('-')):
            assert re.search(rf'(?<![\w-]){option}\b', usage[command]), f'{command} has no {option}'


def test_every_command_has_a_version_and_refuses_an_unknown_option(tmp_path, here):
    for command in (f'medfusion_{c}' for c in COMMANDS):
        assert here(command, '--version') == (0, f'medfusion_nb {__version__}\n', ''), command
        first = dict(medfusion_data=['list'], medfusion_export=['compact']).get(command, [])
        code, out, err = here(command, *first, '--colour')
        assert (code, out) == (2, ''), (command, out)
        assert '--colour' in one_line(err, command) and f'{command} --help' in err, err
    assert not tree(tmp_path)


def test_json_is_all_that_is_printed(tmp_path, here):
    """Not on a terminal, with `--json`: one JSON object on standard output, nothing on standard error,
    and what it says is true. One command in a process of its own, the others in this one."""
    write_llvip(tmp_path/'llvip')
    for folder in write_pairs(tmp_path/'study', 4, size=64):
        for f, name in zip(sorted(folder.iterdir()), (20001, 20002, 33001, 41001)):
            f.rename(folder/f'{name}.png')
    quick = ['--epochs', 1, '--crop', 32, '--backbone', 'resnet18', '--imagenet', 'no', '--batch_size', 16]
    results = {}
    fusing = start('medfusion_fuse', 'study/CT', 'study/MRI', '-o', 'fused', '--json', cwd=tmp_path)
    timed = ('--sizes', 64, '--batches', 1, '--precisions', 'float32', '--devices', 'cpu', '--repeats', 1)
    runs = dict(pretrain=('llvip', *quick), finetune=('study', *quick), evaluate=('study',), benchmark=timed)
    done = {k: here(f'medfusion_{k}', *args, '-o', k, '--json') for k, args in runs.items()}
    done['fuse'] = finish(fusing)
    for command, (code, out, err) in done.items():
        assert (code, err) == (0, ''), (command, err)
        results[command] = json.loads(out, parse_constant=lambda x: x/0) # NaN is no JSON
    assert sorted(results['fuse']['written']) == [f'fused/{n}.png' for n in (20001, 20002, 33001, 41001)]
    for command in ('pretrain', 'finetune'):
        assert (tmp_path/results[command]['checkpoint']).is_file() and len(results[command]['history']) == 1
    summary = json.loads((tmp_path/'evaluate'/'summary_statistics.json').read_text())
    assert results['evaluate']['pairs'] == 2 and results['evaluate']['summary'] == summary
    assert {'full', 'compact', 'maximum'} < set(results['evaluate']['summary']['summary'])
    assert {r['task'] for r in results['benchmark']['rows']} >= {'fuse', 'train'}


def test_finetune_learns_from_all_pairs_whatever_their_names(tmp_path, here):
    "Without patients for validation and test; the compact network from the package, and from random weights."
    write_pairs(tmp_path/'mine', 3, size=64)
    quick = ('mine', '--valid=', '--test=', '--epochs', 1, '--crop', 64, '--mixed-precision', 'no')
    code, out, err = here('medfusion_finetune', *quick, '--checkpoint', 'compact', '-o', 'run', '--json')
    assert (code, err) == (0, '') and json.loads(out)['evaluation']['pairs'] == 3
    code, out, err = here('medfusion_fuse', 'mine/CT', 'mine/MRI',
                          '--weights', 'run/medical_fusion_finetuned.pth', '-o', 'fused')
    assert code == 0 and len(tree(tmp_path/'fused')) == 3, err
    code, out, err = here('medfusion_finetune', *quick, '--network', 'compact', '--recipe', 'shipped',
                          '-o', 'random', '--json')
    assert (code, err) == (0, '') and json.loads(out)['evaluation']['pairs'] == 3
    config = read_checkpoint(tmp_path/'random'/'last.pth')['train_config']
    assert (config['network'], config['turns'], config['crop']) == ('compact', True, 64)
    default = read_checkpoint(tmp_path/'run'/'last.pth')['train_config']
    assert default['window'] == (40., 80.) # windowed already, whatever the recipe says for Hounsfield units


def test_finetune_refuses_what_does_not_fit(tmp_path, here):
    """Options that contradict each other, and a folder that holds another run: one line,
    and nothing is touched."""
    write_pairs(tmp_path/'mine', 3, size=64)
    write_pairs(tmp_path/'yours', 4, size=64)
    quick = ('--valid=', '--test=', '--crop', 32, '--checkpoint', 'compact', '-o', 'run')
    for says, options in (('compact network', ('--network', 'full')),
                          ('CENTRE,WIDTH', ('--window', 'lung')),
                          ('--hu', ('--window', '40,400')),
                          ('polish', ('--recipe', 'polish'))):
        code, out, err = here('medfusion_finetune', 'mine', *quick, *options)
        assert code == 2 and says in one_line(err, 'medfusion_finetune'), err
        assert not (tmp_path/'run').exists(), err
    assert here('medfusion_finetune', 'mine', *quick, '--epochs', 1)[0] == 0
    before = (tmp_path/'run'/'last.pth').read_bytes()
    save_checkpoint(CompactNet(), tmp_path/'random.pth')
    for says, root, options in (('4 here', 'yours', ('--epochs', 1)),
                                ('another seed', 'mine', ('--epochs', 1, '--seed', 7)),
                                ('starting weights', 'mine',
                                 ('--epochs', 1, '--network', 'compact', '--checkpoint', 'random.pth'))):
        code, out, err = here('medfusion_finetune', root, *quick, *options)
        line = one_line(err, 'medfusion_finetune')
        assert code == 2 and 'run: holds a run with' in line and says in line and '--out' in line, err
    code, out, err = here('medfusion_finetune', 'mine', *quick, '--epochs', 1)
    assert code == 0 and 'run: finished: 1 epochs' in out and 'wrote' not in out, (out, err)
    assert (tmp_path/'run'/'last.pth').read_bytes() == before
    code, out, err = here('medfusion_finetune', 'mine', *quick, '--epochs', 2)
    assert code == 0 and 'schedule of 2 epochs' in out and 'epoch 2/2' in out and 'wrote' in out, (out, err)


def test_evaluate_measures_findings_fused_by_another_program(tmp_path, here):
    """The pairs with findings are written for it; its images get the numbers of the same method in memory;
    without them it gets metrics only."""
    write_pairs(tmp_path/'study', 3)
    every = ('study', '--split', 'all', '--patient', '(.+)', '--weights', 'compact')
    code, out, err = here('medfusion_evaluate', *every, '--no-findings',
                          '--findings-out', 'given', '-o', 'plain')
    assert (code, err) == (0, '') and 'wrote given' in out, err
    assert 'Findings' not in out and not (tmp_path/'plain'/'findings.csv').exists(), err
    given = [sorted((tmp_path/'given'/k).iterdir()) for k in ('CT', 'MRI')]
    assert [f.name for f in given[0]] == [f.name for f in given[1]] and len(given[0]) > 20
    for ct, mri in zip(*given):
        write_image(tmp_path/'theirs'/ct.name, np.maximum(read_image(ct), read_image(mri)))
    for ct in (tmp_path/'study'/'CT').iterdir():
        write_image(tmp_path/'few'/ct.name, read_image(tmp_path/'theirs'/ct.name))
    code, out, err = here('medfusion_evaluate', *every, '--findings-out', 'given',
                          '--method', 'theirs=theirs', '--method', 'few=few', '-o', 'run', '--json')
    assert (code, err) == (0, ''), err
    findings = json.loads(out)['summary']['findings']
    assert findings['mean']['theirs'] == findings['mean']['maximum'] and 'few' not in findings['mean']
    assert (tmp_path/'run'/'findings.csv').is_file()
    (tmp_path/'theirs'/given[0][-1].name).unlink()
    code, out, err = here('medfusion_evaluate', *every, '--method', 'theirs=theirs', '-o', 'other')
    assert code == 2 and given[0][-1].name in one_line(err, 'medfusion_evaluate')
    assert not (tmp_path/'other').exists()
    write_pairs(tmp_path/'larger', 4)
    code, out, err = here('medfusion_evaluate', 'larger', *every[1:],
                          '--findings-out', 'given', '-o', 'other')
    assert code == 2 and 'given' in one_line(err, 'medfusion_evaluate') and not (tmp_path/'other').exists()


def test_data_verifies_and_asks_before_it_fetches(tmp_path, here, monkeypatch):
    """Exit code 0 for a good folder, 1 for one with a wrong pair, 2 where terms are not accepted;
    nothing is asked of the network before that."""
    ct, mri = write_pairs(tmp_path/'good', 2, size=96)
    write_pairs(tmp_path/'bad', 2, size=96)
    (tmp_path/'bad'/'MRI'/'Schnitt ä00.png').unlink()
    code, out, err = here('medfusion_data', 'verify', 'good')
    assert (code, err) == (0, '') and '2 pairs' in out and 'nothing wrong' in out, (out, err)
    code, out, err = here('medfusion_data', 'verify', 'bad', '--json')
    assert (code, err) == (1, ''), err
    assert json.loads(out)['ok'] is False and 'no twin' in json.loads(out)['problems'][0]
    code, out, err = here('medfusion_data', 'fetch', 'RoadScene')
    assert code == 2 and 'no licence stated' in out and '--accept' in one_line(err, 'medfusion_data')
    code, out, err = here('medfusion_data', 'fetch', 'LLVIP', '--accept')
    assert (code, out) == (2, '') and 'download_dataset.md' in one_line(err, 'medfusion_data')
    monkeypatch.setenv('http_proxy', 'http://127.0.0.1:9')
    monkeypatch.setenv('https_proxy', 'http://127.0.0.1:9')
    monkeypatch.setattr('medfusion_nb.datasets.time.sleep', lambda seconds: None) # between its tries
    code, out, err = here('medfusion_data', 'fetch', 'TNO', '--accept', '--out', 'sets')
    assert code == 2 and 'github.com' in one_line(err, 'medfusion_data'), err
    assert not [f for f in tree(tmp_path) if f.startswith(('data', 'sets'))]


def test_no_arguments_fuse_the_phantom_and_overwrite_nothing(tmp_path):
    code, out, err = run('medfusion_fuse', cwd=tmp_path)
    assert code == 0 and 'Traceback' not in err, err
    assert 'fused.png' in out
    assert list(tree(tmp_path)) == ['fused.png']
    img, phantom = image(tmp_path/'fused.png'), phantom_pair(256)
    assert img.dtype == np.uint8 and img.shape == (256, 256)
    background = maximum_filter(np.maximum(phantom.ct, phantom.mri), 3) == 0
    assert img[background].max() == 0, 'the background is not black'
    assert img[phantom.masks['skull']].mean() > 150, 'the bone of the CT is missing'
    tissue = phantom.masks['grey_matter'] | phantom.masks['ventricles']
    def like_mri(x): return np.corrcoef(x[tissue], phantom.mri[tissue])[0, 1]
    mean = (phantom.ct.astype(float)+phantom.mri)/2
    assert like_mri(img) > like_mri(mean)+.1, 'the tissue of the MRI is missing'
    before = tree(tmp_path)
    code, out, err = run('medfusion_fuse', cwd=tmp_path)
    assert (code, out) == (2, '')
    assert 'fused.png' in one_line(err) and '--force' in err
    assert tree(tmp_path) == before


def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, pair, here):
    ct, mri = pair
    broken = tmp_path/'broken.png'
    write_image(tmp_path/'small.png', read_image(mri)[:100])
    broken.write_bytes(mri.read_bytes()[:-200])
    before = tree(tmp_path)
    for name in ('nowhere.png', 'broken.png', 'small.png'):
        code, out, err = here('medfusion_fuse', ct, name, '-o', 'out.png')
        assert (code, out) == (2, ''), (name, out, err)
        assert name in one_line(err), err
    assert tree(tmp_path) == before


def test_other_commands_name_a_missing_folder(tmp_path, here):
    for command in ('pretrain', 'finetune', 'evaluate'):
        code, out, err = here(f'medfusion_{command}', tmp_path/'nowhere')
        assert code == 2, (command, out, err)
        assert 'nowhere' in one_line(err, f'medfusion_{command}')
    assert not [f for f in tree(tmp_path) if f.endswith(('.pth', '.csv', '.json'))]


def test_folders(tmp_path):
    ct, mri = write_pairs(tmp_path, 3)
    code, out, err = run('medfusion_fuse', 'CT', 'MRI', '-o', 'fused', '--bits', '16', '--figure',
                         cwd=tmp_path)
    assert (code, err) == (0, ''), 'piped, it should be quiet'
    names = [p.name for p in sorted(ct.iterdir())]
    assert sorted(p.name for p in (tmp_path/'fused').glob('*.png')) == names
    assert sorted(p.name for p in (tmp_path/'fused'/'figure').iterdir()) == names
    for name in names:
        img = image(tmp_path/'fused'/name)
        assert img.dtype == np.uint16 and img.shape == (128, 128)
        # the number of threads differs between the processes
        assert np.abs(img/65535 - fuse(ct/name, mri/name)).max() < 2e-3


def test_a_full_disk_leaves_nothing(tmp_path, pair):
    "A limit on the size of a file stands in for a disk that fills up while the image is written."
    def limit(): resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
    before = tree(tmp_path)
    p = start('medfusion_fuse', *pair, '-o', 'out.png', cwd=tmp_path,
              env=dict(PYTHONDONTWRITEBYTECODE='1'), preexec_fn=limit)
    code, out, err = finish(p)
    assert (code, out) == (2, ''), err
    assert 'out.png' in err.splitlines()[-1] or 'too large' in err.splitlines()[-1], err
    assert tree(tmp_path) == before
