"""Seeded mutations of files: of their bytes, and of what the formats hold. For test_hostile.py.

A mutation takes a random generator and the content of a file, and gives another content.
"""
import gzip
import io
import json
import math
import re
import struct
import warnings
import zipfile
import zlib

import numpy as np

# ---- of bytes

NUMBERS = (0, -1, 1, 255, 2**15, 2**31 - 1, 2**32 - 1, 2**63 - 1, math.nan, math.inf, -math.inf, 1e38, 1e-38)
WORDS = (b'0', b'-1', b'nan', b'inf', b'-inf', b'1e308', b'1e-320', b'2147483647', b'4294967295', b'9'*30,
         b'', b'x'*5000, b'abc', b'1 2', b'1\\2', b'\xff\xfe\0', b'0x10', b'1,5', b'../../x', b'/etc/passwd',
         b'1000000')

def pick(rng, choices): return choices[int(rng.integers(len(choices)))]

def spot(rng, data):
    "A position, in a header as often as anywhere."
    n = max(len(data), 1)
    return int(rng.integers(min(n, pick(rng, (64, 400, n, n)))))

def put(data, at, new, old=None): # old: bytes replaced; None: as many as come
    "Bytes with some replaced."
    return data[:at] + new + data[at + (len(new) if old is None else old):]

def flip(rng, data):
    out = bytearray(data or b'\0')
    for _ in range(int(rng.integers(1, 9))): out[spot(rng, data)] ^= 1 << int(rng.integers(8))
    return bytes(out)

def overwrite(rng, data):
    n = int(rng.integers(1, 65))
    return put(data, spot(rng, data), pick(rng, (bytes(n), b'\xff'*n, rng.bytes(n))))[:len(data)]

def cut(rng, data): return data[:int(rng.integers(len(data) + 1))]
def insert(rng, data): return put(data, spot(rng, data), rng.bytes(int(rng.integers(1, 65))), 0)

def double(rng, data):
    at, n = spot(rng, data), int(rng.integers(1, 300))
    return put(data, at, data[at:at + n], 0)

def swap(rng, data):
    n, (a, b) = int(rng.integers(1, 100)), sorted((spot(rng, data), spot(rng, data)))
    return data if b < a + n else data[:a] + data[b:b + n] + data[a + n:b] + data[a:a + n] + data[b + n:]

def packed(rng, number):
    "A number in one of the forms of binary headers."
    kind = pick(rng, '<>') + pick(rng, 'BHIQfd')
    if kind[1] in 'fd': return struct.pack(kind, number)
    return struct.pack(kind, int(number if math.isfinite(number) else -1) % 256**struct.calcsize(kind))

def number(rng, data): return put(data, spot(rng, data), packed(rng, pick(rng, NUMBERS)))[:len(data)]

BYTES = flip, flip, overwrite, cut, insert, double, swap, number

# ---- of what the formats hold

def head(data): # where the text before the voxels ends
    "The header of NRRD and MetaImage; the whole of other text."
    ends = [data.find(end) + len(end) for end in (b'\n\n', b'LOCAL\n') if end in data]
    return min(ends, default=len(data))

def word(rng, data):
    "A word of the header is another one."
    m = pick(rng, list(re.finditer(rb'[^\s:=,()\[\]{}"]+', data[:head(data)])))
    return put(data, m.start(), pick(rng, WORDS), m.end() - m.start())

def line(rng, data):
    "A line of the header is missing, there twice, or another one."
    n = head(data)
    lines = data[:n].splitlines(True)
    lines[int(rng.integers(len(lines)))] = pick(rng, (b'', pick(rng, lines)*2, pick(rng, lines)))
    return b''.join(lines) + data[n:]

def branches(value):
    "Every place in nested dicts and lists: what holds it, and its key."
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from branches(value[key])

PLAIN = (None, True, 0, -1, 2**31 - 1, 2**63, 1e308, math.nan, math.inf, '', 'x'*5000, 'full',
         [], {}, [[]], [1, 2], ['a'])

def change(rng, value, choices=PLAIN):
    "A value of nested dicts and lists is another one, or gone."
    holder, key = pick(rng, list(branches(value)))
    if rng.random() < .2: del holder[key]
    else: holder[key] = pick(rng, choices)
    return value

def entry(rng, data):
    "A value of a JSON file."
    return json.dumps(change(rng, json.loads(data))).encode()

def deep(rng, data):
    "JSON that is nested deeply, or of another kind."
    other = b'\xef\xbb\xbf' + data, data.decode().encode('utf-16')
    return pick(rng, (b'['*100_000, b'[]', b'3', b'null', b'"x"', b'{}', *other))

def tensors(rng, data):
    "A value of the JSON in front of safetensors."
    n = struct.unpack('<Q', data[:8])[0]
    new = entry(rng, data[8:8 + n])
    return struct.pack('<Q', len(new)) + new + data[8 + n:]

def pickled(rng, data):
    "A value of a checkpoint."
    import torch
    content, out = torch.load(io.BytesIO(data), weights_only=True), io.BytesIO()
    strange = torch.full((3, 3), math.nan), torch.zeros(0), torch.zeros(1, dtype=torch.int8), 'x', None
    state = content.get('model_state_dict')
    if rng.random() < .5 and isinstance(state, dict):
        content['model_state_dict'] = dict(state)
        key = pick(rng, [*state])
        content['model_state_dict'][key] = pick(rng, [*strange, torch.full_like(state[key], math.inf)])
    else: change(rng, content, [*PLAIN, *strange])
    torch.save(content, out)
    return out.getvalue()

def chunk(rng, data):
    "A chunk of a PNG: its length, its content, its number; mostly with a right checksum."
    starts, at = [], 8
    while at + 12 <= len(data):
        starts.append(at)
        at += 12 + struct.unpack('>I', data[at:at + 4])[0]
    at = starts[0] if rng.random() < .3 else pick(rng, starts)
    n = struct.unpack('>I', data[at:at + 4])[0]
    whole, kind, body = data[at:at + 12 + n], data[at + 4:at + 8], data[at + 8:at + 8 + n]
    way = int(rng.integers(5))
    if way == 0: return put(data, at, b'', len(whole)) # gone
    if way == 1: return put(data, at, whole, 0)        # twice
    if way == 2: return put(data, at, struct.pack('>I', int(pick(rng, (0, 1, n + 1, 2**31 - 1, 2**32 - 1)))))
    body = pick(rng, BYTES)(rng, body) if body else b'x'
    if rng.random() < .1: kind = pick(rng, (b'tRNS', b'eXIf', b'PLTE', b'IHDR', b'IDAT', b'acTL'))
    new = struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))
    return put(data, at, new, len(whole))

def tag(rng, data):
    "An entry of a TIFF directory: number, type, count or value; or where the next directory is."
    order = '<' if data[:2] == b'II' else '>'
    at = struct.unpack(order + 'I', data[4:8])[0]
    n = struct.unpack(order + 'H', data[at:at + 2])[0]
    following = struct.pack(order + 'I', pick(rng, (at, 8, 2**32 - 1)))
    if rng.random() < .1: return put(data, at + 2 + 12*n, following)
    at += 2 + 12*int(rng.integers(n))
    field, form = pick(rng, ((0, 'H'), (2, 'H'), (4, 'I'), (8, 'I'), (8, 'I'), (8, 'H')))
    most = 256**struct.calcsize(form)
    new = pick(rng, (0, 1, 2, 3, 16, 64, 274, 2**15, 2**31 - 1, 2**32 - 1, int(rng.integers(most)))) % most
    return put(data, at + field, struct.pack(order + form, new))

def segment(rng, data):
    "A segment of a JPEG: one of its first bytes, gone, or twice."
    starts = [m.start() for m in re.finditer(rb'\xff[\xc0-\xc4\xda-\xdd\xe0-\xe2]', data)]
    at = pick(rng, starts[:-1] or starts)
    n = 2 + struct.unpack('>H', data[at + 2:at + 4])[0]
    way = int(rng.integers(4))
    if way == 0: return put(data, at, b'', n)
    if way == 1: return put(data, at, data[at:at + n], 0)
    return put(data, at + 2 + int(rng.integers(min(n, 18))), bytes([pick(rng, (0, 1, 2, 4, 17, 127, 255))]))

def elements(data):
    """Where the elements of a DICOM file lie (explicit, little endian, sequences of undefined length):
    tag, first byte, first byte of the value, its length."""
    at = 132
    while at + 8 <= len(data):
        number = struct.unpack('<HH', data[at:at + 4])
        long = data[at + 4:at + 6] in (b'OB', b'OW', b'SQ', b'UN', b'UT', b'UC')
        if number[0] == 0xfffe: at += 8 # an item begins or ends
        else:
            value = at + (12 if long else 8)
            n = struct.unpack('<I' if long else '<H', data[value - 4 if long else value - 2:value])[0]
            if n != 2**32 - 1: yield number, at, value, n
            elif number[0] == 0x7fe0: return # compressed
            at = value + (0 if n == 2**32 - 1 else n)

def dicom_number(rng, data, value, n):
    "Another content of an element."
    old = data[value:value + n]
    binary = [packed(rng, pick(rng, NUMBERS)) for _ in range(2)]
    changed = old + b'\\' + old, old*2, old[:n//2], b'', rng.bytes(n or 2)
    return pick(rng, (pick(rng, WORDS), pick(rng, WORDS), *binary, *changed))

def element(rng, data):
    "An element of a DICOM file has another value, two, text or none, is missing or there twice."
    found = [e for e in elements(data) if e[0] != (0x7fe0, 0x10) or rng.random() < .5]
    geometry = [e for e in found if e[0][0] in (0x20, 0x28)]
    (group, _), at, value, n = pick(rng, geometry if geometry and rng.random() < .6 else found)
    way, end = rng.random(), value + n
    if way < .15: new = b''
    elif way < .25: new = data[at:end]*2
    elif way < .28: new = data[at:end] + nested(20_000)
    else:
        body = dicom_number(rng, data, value, n)
        body += b' '*(len(body) % 2)
        size = struct.pack('<I' if value - at == 12 else '<H', len(body))
        new = data[at:value - len(size)] + size + body
    out = put(data, at, new, end - at)
    if group == 2 and at > 140: # the length of the first group
        length = struct.unpack('<I', out[140:144])[0] + len(new) - (end - at)
        out = put(out, 140, struct.pack('<I', max(length, 0)))
    return out

def nested(depth): return (b'\x08\0\x40\x11SQ\0\0\xff\xff\xff\xff' + b'\xfe\xff\0\xe0\xff\xff\xff\xff')*depth

def field(dtype):
    "A field of a binary header is another number."
    def change_field(rng, data):
        name = pick(rng, dtype.names)
        kind, at = dtype.fields[name][:2]
        base, n = kind.base, int(np.prod(kind.shape, dtype=int))
        at += base.itemsize*int(rng.integers(n))
        text = pick(rng, (b'\xff', b'n+1\0', rng.bytes(4)))[:base.itemsize]
        if base.kind == 'S': return put(data, at, text)
        value = pick(rng, (*NUMBERS, 2, 3, 7, 16, 64, 128, 512, 1e-3, 1e4))
        if base.kind in 'iu': value = np.uint64(int(value if math.isfinite(value) else -1) % 2**64)
        with np.errstate(all='ignore'): return put(data, at, np.asarray(value).astype(base).tobytes())
    return change_field

def inside(*mutations):
    "Mutations of what is compressed."
    def unzip(rng, data): return gzip.compress(pick(rng, mutations)(rng, gzip.decompress(data)), 1, mtime=0)
    return unzip

NAMES = ('../x.png', '/tmp/x.png', 'C:\\x.png', 'a/../../x.png', 'a\0b.png', 'x'*5000, '',
         'set/CT-MRI/CT/1.png', '..\\x.png')

def member(rng, data):
    "A member of a zip file: its name, a link, its size."
    out = io.BytesIO()
    with (zipfile.ZipFile(io.BytesIO(data)) as z, zipfile.ZipFile(out, 'w') as new,
          warnings.catch_warnings()):
        warnings.simplefilter('ignore') # of names that are there twice
        chosen = pick(rng, z.namelist())
        for m in z.infolist():
            content, way = z.read(m), int(rng.integers(4)) if m.filename == chosen else -1
            info = zipfile.ZipInfo(pick(rng, NAMES) if way in (0, 1) else m.filename)
            info.external_attr = m.external_attr
            if way == 2: info.external_attr, content = 0o120777 << 16, b'/etc/passwd'
            if way == 3: content = bytes(2_000_000)
            new.writestr(info, content, zipfile.ZIP_DEFLATED)
    return out.getvalue()
