"""The same batches, findings included, in every process,
however many workers load them and however they were started."""
import sys

from conftest import finish, start, write_pairs

BATCHES = '''
import hashlib, sys, torch.multiprocessing as mp
from medfusion_nb.data import FusionDataset, dataloader, find_pairs
from medfusion_nb.pretrain import WithFindings

def main():
    workers, method, root = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    mp.set_start_method(method)
    ds = WithFindings(FusionDataset(find_pairs(root), crop=48, augment=True, seed=3))
    dl = dataloader(ds, 2, shuffle=True, workers=workers, seed=5)
    for epoch in range(2):
        ds.set_epoch(epoch)
        h, names = hashlib.sha256(), []
        for a, b, name, *found in dl:
            h.update(b''.join(x.numpy().tobytes() for x in (a, b, *found)))
            names += name
        print(epoch, h.hexdigest(), *names)

if __name__ == '__main__': main()
'''


def test_batches_are_reproducible_across_processes(tmp_path):
    write_pairs(tmp_path, 6, size=64)
    script = tmp_path/'batches.py'
    script.write_text(BATCHES)
    ways = ([(0, 'fork'), (2, 'fork'), (1, 'spawn')] if sys.platform == 'linux'
            else [(0, 'spawn'), (1, 'spawn')])
    processes = [start(str(script), *way, tmp_path, cwd=tmp_path, env=dict(PYTHONHASHSEED=str(i)))
                 for i, way in enumerate(ways)]
    results = [finish(p) for p in processes]
    for (code, out, err), way in zip(results, ways):
        assert code == 0, (way, err)
        assert out == results[0][1], way
    first, second = (line.split() for line in results[0][1].splitlines())
    assert first[1] != second[1] and first[2:] != second[2:], \
        'the epochs should differ in augmentation and order'
