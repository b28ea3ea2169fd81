"Weights come from where they were asked for, whole and sensible, or not at all: files, folders and the hub."
import json
import logging
import pickle
import resource
import signal
import struct
import threading
import time
import types
import zipfile

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from medfusion_nb import engine, model as m
from medfusion_nb.fuse import load_engine, medfusion_fuse, which_network
from medfusion_nb.model import CompactNet, FusionNet, load_checkpoint, load_network, save_checkpoint

COMMIT = '0123456789abcdef'*2 + '01234567'


def compact(): return CompactNet((4, 4, 4), (1, 1, 1), 2).eval()


def same(a, b):
    x, y = torch.rand(2, 1, 1, 24, 40, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(): torch.testing.assert_close(a(x, y), b(x, y))


def refused(what, *words, kind=ValueError, limit=1000):
    "The error of loading: one line, short, that has these words."
    with pytest.raises((ValueError, OSError)) as e: load_network(what)
    text = str(e.value)
    assert isinstance(e.value, kind) and '\n' not in text and len(text) < limit, text
    assert all(w in text for w in words), text
    return text


@pytest.fixture
def hub(tmp_path, monkeypatch):
    "A hub with one repository, and what was asked of it."
    asked, snapshot = [], tmp_path/'models--someone--net'/'snapshots'/COMMIT
    net = compact()
    net.save_pretrained(snapshot)
    def download(repo, file, revision=None, **kwargs):
        asked.append((repo, file, revision))
        if repo != 'someone/net': raise RuntimeError(f'404\nnot found: {repo}')
        return str(snapshot/file)
    monkeypatch.setattr(m, 'hf_hub_download', download)
    return asked, net


PATHS = 'someone/net', 'runs/finetune', 'compactt', './someone/net', 'hub/someone/net'
NAMES = 'hub:', 'hub:net', 'hub:a/b/c', 'hub:../net', 'hub:a/..@x y', 'hub:a/b@', 'hub: a/b'


@pytest.mark.parametrize('name', PATHS)
def test_no_path_is_ever_asked_of_the_hub(hub, name):
    asked, _ = hub
    for load in (load_network, load_engine, CompactNet.from_pretrained, FusionNet.from_pretrained):
        with pytest.raises(FileNotFoundError, match='no such file or folder; .*hub:OWNER/NAME'): load(name)
    assert not asked


def test_hub_gives_the_commit(hub, caplog):
    asked, net = hub
    caplog.set_level(logging.INFO, 'medfusion_nb')
    loaded = load_network('hub:someone/net')
    same(loaded, net)
    pinned = f'hub:someone/net@{COMMIT}'
    assert loaded.source == pinned and caplog.messages == [f'weights: {pinned}']
    # two files and no others, both of one commit
    assert asked == [('someone/net', 'config.json', None), ('someone/net', 'model.safetensors', COMMIT)]
    asked.clear()
    assert load_network('hub:someone/net@v1.0').source == pinned and asked[0][2] == 'v1.0'
    assert which_network('hub:someone/net') == pinned and load_network(pinned).source == pinned
    same(CompactNet.from_pretrained('hub:someone/net', revision='main'), net)
    with pytest.raises(ValueError, match='use load_network'): FusionNet.from_pretrained('hub:someone/net')


@pytest.mark.parametrize('name', NAMES)
def test_hub_names(hub, name):
    refused(name, 'hub:OWNER/NAME')
    assert not hub[0]


def test_hub_that_does_not_answer(hub, tmp_path, monkeypatch, capsys, caplog):
    refused('hub:nobody/net', 'hub:nobody/net: config.json could not be fetched', '404 not found')
    said = logging.getLogger('huggingface_hub.utils._http')
    def retried(*args, **kwargs):
        said.warning('Retrying')
        raise OSError('no network')
    monkeypatch.setattr(m, 'hf_hub_download', retried)
    refused('hub:nobody/net', 'no network')
    said.warning('as before')
    assert caplog.messages == ['as before']
    monkeypatch.setattr(m, 'hf_hub_download', huggingface_hub.hf_hub_download)
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    options = ['--weights', 'hub:nobody/net', '--out', str(tmp_path/'a.png')]
    with pytest.raises(SystemExit) as e: medfusion_fuse(options)
    err = capsys.readouterr().err
    assert e.value.code == 2 and err.count('\n') == 1, err
    assert err.startswith('medfusion_fuse: hub:nobody/net: config.json could not be fetched'), err


@pytest.mark.parametrize('net', [compact(), CompactNet()])
def test_saved_and_loaded_again(net, tmp_path):
    net.eval()
    net.config['window'] = [75., 215.] # as finetune changes it
    net.save_pretrained(tmp_path/'hub')
    m.save_shipped(net, tmp_path/'own', int8=False)
    save_checkpoint(net, tmp_path/'net.pth')
    for place in ('hub', 'own', 'net.pth'):
        again = load_network(tmp_path/place)
        same(again, net)
        assert (type(again), again.config) == (type(net), net.config) and not again.training
        assert all(p.requires_grad for p in again.parameters())
        same(type(net).from_pretrained(tmp_path/place), net)


def test_a_folder_of_weights_is_whole(tmp_path):
    "A full disk leaves the older folder as it was, and no new one."
    older, net = compact(), compact()
    older.save_pretrained(tmp_path/'a')
    before = {p.name: p.read_bytes() for p in (tmp_path/'a').iterdir()}
    assert set(before) == {'model.safetensors', 'config.json', 'README.md'}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        for name in ('a', 'new'):
            with pytest.raises(OSError, match='no space left .*model.safetensors'): net.save_pretrained(tmp_path/name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert {p.name: p.read_bytes() for p in (tmp_path/'a').iterdir()} == before and not (tmp_path/'new').exists()
    (tmp_path/'file').touch()
    with pytest.raises(NotADirectoryError, match='file is a file: name a folder'): net.save_pretrained(tmp_path/'file')


def test_the_last_writer_counts(tmp_path):
    one, two = compact(), compact()
    for first, then in ((one.save_pretrained, lambda p: m.save_shipped(two, p, int8=False)),
                        (lambda p: m.save_shipped(one, p), two.save_pretrained),
                        (lambda p: m.save_shipped(one, p), lambda p: m.save_shipped(two, p, int8=False))):
        first(tmp_path)
        then(tmp_path)
        same(load_network(tmp_path), two)
        assert len([*tmp_path.glob('*.safetensors')]) == 1
    file, = tmp_path.glob('*.safetensors')
    file.write_bytes(file.read_bytes()[:-1] + b'x')
    assert 'install' not in refused(tmp_path, 'damaged; copy it again')


def test_pushed_to_the_hub(tmp_path, monkeypatch):
    sent = []
    class Api:
        def __init__(self, token=None): pass
        def create_repo(self, repo_id, **kwargs): return types.SimpleNamespace(repo_id=f'someone/{repo_id}')
        def upload_folder(self, folder_path, **kwargs):
            sent.append((kwargs['repo_id'], kwargs['commit_message'], {p.name for p in folder_path.iterdir()}))
            return 'address'
    monkeypatch.setattr(huggingface_hub.hub_mixin, 'HfApi', Api)
    assert compact().save_pretrained(tmp_path/'net', push_to_hub=True, commit_message='first') == 'address'
    assert sent == [('someone/net', 'first', {'model.safetensors', 'config.json', 'README.md'})]


def test_weights_without_sense(tmp_path):
    net = compact()
    with torch.no_grad():
        for p in net.parameters(): p.fill_(1e38)
    save_checkpoint(net, tmp_path/'a.pth')
    with pytest.raises(ValueError, match='weights .*a.pth make no sense.*not finite'):
        load_engine(tmp_path/'a.pth', 'cpu')(*torch.rand(2, 1, 32, 32).numpy())
    refused('', 'the name is empty')


def test_folder_of_an_older_hub_library(tmp_path):
    "It wrote a default into the configuration or not, and where the training had started."
    net = compact()
    net.save_pretrained(tmp_path)
    (tmp_path/'config.json').write_text('{"depth": [1, 1, 1], "fine": 2, "width": [4, 4, 4]}')
    same(load_network(tmp_path), net)


def test_other_network_is_one_line(tmp_path):
    full = FusionNet('resnet18', False).eval()
    full.save_pretrained(tmp_path/'c')
    (tmp_path/'c'/'config.json').write_text('{"backbone": "resnet18", "imagenet": true}') # as older ones wrote it
    same(load_network(tmp_path/'c'), full)
    save_checkpoint(full, tmp_path/'a.pth', compact().state_dict())
    text = refused(tmp_path/'a.pth', 'a.pth: the weights are not of the network', 'are missing, the first', 'save_checkpoint')
    assert 'belong to no such network' in text
    (tmp_path/'c'/'config.json').write_text('{"backbone": "resnet18", "width": 25}')
    refused(tmp_path/'c', 'model.safetensors', 'have another shape, the first head.', 'instead of')
    (tmp_path/'resnet.pth').write_bytes(b'PK')
    for file in ('resnet.pth', 'a.pth'):
        with pytest.raises(ValueError, match=file) as e: FusionNet('resnet18', tmp_path/file)
        assert len(str(e.value)) < 400 and '\n' not in str(e.value)


@pytest.mark.parametrize('value,why', [
    (float('nan'), 'not finite'), (float('inf'), 'not finite'), (-1., 'negative variances')])
def test_numbers(value, why, tmp_path):
    net, key = compact(), 'refine.1.running_var'
    net.state_dict()[key][0] = value
    save_checkpoint(net, tmp_path/'a.pth')
    net.save_pretrained(tmp_path/'b')
    m.save_shipped(net, tmp_path/'c')
    for place in ('a.pth', 'b', 'c'): refused(tmp_path/place, str(tmp_path/place), key, why)


def test_tensors_of_another_kind(tmp_path):
    net, key = compact(), 'refine.0.weight'
    w = net.state_dict()[key]
    kinds = [w.int(), w.to(torch.complex64), w.to('meta'), w.to_sparse(), w.double()*1e300, 'text', None]
    for kind in kinds:
        save_checkpoint(net, tmp_path/'a.pth', net.state_dict() | {key: kind})
        refused(tmp_path/'a.pth', 'a.pth: ', key)
    half = {k: v.half() if v.is_floating_point() else v for k, v in net.state_dict().items()}
    save_checkpoint(net, tmp_path/'a.pth', half)
    assert {v.dtype for v in load_network(tmp_path/'a.pth').state_dict().values()} == {torch.float32, torch.int64}


CONFIGS = [dict(width=10**6), dict(width=[10**6]*3), dict(backbone='resnet35'), dict(backbone=['resnet18']), dict(depth=3),
           dict(fine=True), dict(fine=1e9), dict(window=[float('nan'), 80]), dict(window=[40, 0]), dict(window='brain'),
           dict(network='huge'), dict(network=['compact']), dict(imagenet='/etc/passwd'), dict(width=[1024]*3, depth=[16]*3),
           {'a'*9999: 1}, {1: 2}, [], 'compact', None, 7]


@pytest.mark.parametrize('config', CONFIGS, ids=lambda c: repr(c)[:30])
def test_configuration_makes_sense(config, tmp_path):
    "Within a second each, and nothing of the size it claims is built."
    net = compact()
    net.config = net.config | config if isinstance(config, dict) and 'network' not in config else config
    save_checkpoint(net, tmp_path/'a.pth')
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    refused(tmp_path/'a.pth', 'a.pth: ')
    if not isinstance(config, dict) or 1 not in config:
        compact().save_pretrained(tmp_path/'b')
        (tmp_path/'b'/'config.json').write_text(json.dumps(net.config))
        if not (isinstance(config, dict) and 'imagenet' in config): refused(tmp_path/'b', str(tmp_path/'b'))
    assert time.process_time() - start < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2e5 # kB


def rewritten(source, target, change=lambda name, data: data, **kwargs):
    "A zip archive with other contents and right checksums."
    with zipfile.ZipFile(source) as a, zipfile.ZipFile(target, 'w', **kwargs) as b:
        for e in a.infolist(): b.writestr(e.filename, change(e.filename, a.read(e)))


def test_archives(tmp_path):
    good, bad = tmp_path/'good.pth', tmp_path/'bad.pth'
    save_checkpoint(compact(), good)
    rewritten(good, bad)
    load_network(bad)
    rewritten(good, bad, compression=zipfile.ZIP_DEFLATED) # as a zip bomb is
    refused(bad, 'bad.pth', 'compresses nothing')
    rewritten(good, bad, lambda name, data: data[:-4] if '/data/' in name else data) # shorter than it claims
    refused(bad, 'bad.pth', 'safely')
    rewritten(good, bad, lambda name, data: pickle.dumps(print) if name.endswith('.pkl') else data)
    refused(bad, 'bad.pth', 'safely')
    data = bytearray(good.read_bytes())
    data[data.index(b'data/0') + 200] ^= 1
    bad.write_bytes(data)
    refused(bad, 'bad.pth', 'checksum')
    with zipfile.ZipFile(bad, 'w') as z: z.writestr('word/document.xml', '<w/>')
    refused(bad, 'bad.pth', 'safely')
    torch.save(dict(model_state_dict=compact().state_dict()), bad, _use_new_zipfile_serialization=False)
    refused(bad, 'bad.pth', 'safely')
    torch.save(dict(model_state_dict={'a': torch.zeros(1).expand(10**12)}), bad) # claims 4 TB
    refused(bad, 'bad.pth', 'belong to no such network')
    torch.save(dict(model_state_dict={}, format='2'), bad)
    refused(bad, 'bad.pth', 'format')


def test_damaged_safetensors(tmp_path):
    compact().save_pretrained(tmp_path)
    file = tmp_path/'model.safetensors'
    good = file.read_bytes()
    claims = json.dumps({'a': dict(dtype='F32', shape=[10**6, 10**6], data_offsets=[0, 4*10**12])}).encode()
    config = tmp_path/'config.json'
    flipped = good[:-1] + bytes([good[-1] ^ 1])
    file.write_bytes(flipped)
    refused(tmp_path, 'model.safetensors', 'SHA-256')
    plain = json.loads(config.read_text())
    del plain['sha256'] # as the hub's own class writes it
    config.write_text(json.dumps(plain))
    for content in (b'', b'\xff'*8, good[:100], good[:-1], good + b'0', struct.pack('<Q', len(claims)) + claims):
        file.write_bytes(content)
        refused(tmp_path, 'model.safetensors: damaged')
    save_file({k: v for k, v in load_file_of(good, file).items() if k != 'out.bias'}, file)
    refused(tmp_path, 'model.safetensors', '1 of ', 'out.bias')
    for text in ('', '{', '[]', '7', 'null', '"a"', '['*10**5, '{"format": 9}', '{"format": "x"}', '{"width": 1e999}', '\0'):
        config.write_text(text)
        refused(tmp_path, str(tmp_path))
    config.unlink()
    refused(tmp_path, 'config.json: missing', kind=FileNotFoundError)


def load_file_of(content, file):
    file.write_bytes(content)
    return load_file(file)


def test_folders_and_files_of_other_kinds(tmp_path):
    refused(tmp_path, 'no model.safetensors', 'save_pretrained', kind=FileNotFoundError)
    save_checkpoint(compact(), tmp_path/'best.pth')
    refused(tmp_path, 'name a file in it: best.pth', kind=FileNotFoundError)
    (tmp_path/'a.onnx').write_bytes(b'x')
    refused(tmp_path/'a.onnx', 'a.onnx', '.pth')
    refused('nowhere.pth', 'nowhere.pth', 'no such file', kind=FileNotFoundError)
    with pytest.raises(FileNotFoundError): load_checkpoint('nowhere.pth')


def test_many_threads_load_one_network(monkeypatch):
    loaded, real = [], engine.load_engine
    def counted(*args):
        loaded.append(1)
        time.sleep(.05)
        return real(*args)
    monkeypatch.setattr(engine, 'load_engine', counted)
    engine._loaded_once.cache_clear()
    got, ready = [], threading.Barrier(16)
    def first():
        ready.wait()
        got.append(engine.own_engine())
    threads = [threading.Thread(target=first) for _ in range(16)]
    for t in threads: t.start()
    for t in threads: t.join()
    engine._loaded_once.cache_clear()
    assert len(loaded) == 1 and len(got) == 16 and len({id(e) for e in got}) == 1
