// The page: files come in, the fused image is shown and saved.
import { Engine } from './engine.js'
import { Refused, read } from './files.js'
import { TRAINED, WINDOWS } from './numbers.js'
import { Pictures } from './pictures.js'
import { PLANES, Viewer } from './viewer.js'
import { Volumes } from './volumes.js'

const EXAMPLES = { // button -> files
    'phantom-pictures': ['phantom_ct.png', 'phantom_mri.png'],
    'phantom-volumes': ['phantom_ct.nii.gz', 'phantom_mri.nii.gz'],
}
const NAMED = [/(^|[^a-z0-9])(ct|cta|ncct|cbct)([^a-z0-9]|$)/i,
               /(^|[^a-z0-9])(mr|mri|t1|t1w|t1c|t2|t2w|flair)([^a-z0-9]|$)/i] // a CT, an MRI
const OUTDATED = 'This browser cannot run the network: use a current Firefox, Chrome, Edge or Safari'

const $ = id => document.getElementById(id)
const inputs = [$('ct-file'), $('mri-file')], result = $('result')
const pictures = [...document.querySelectorAll('figure .picture canvas')]
let pair, viewer, nextView = 0 // ms, when it is time to show more of what is fused

const engine = Engine.load().catch(e => {
    console.error(e)
    throw new Refused(OUTDATED)
})

// --- What is said

const say = text => { $('status').textContent = text }

function fail(e) {
    if (!(e instanceof Refused)) console.error(e)
    $('error').textContent = e instanceof Refused ? e.message : `This did not work: ${e.message}`
    $('error').hidden = false
    say('')
}

function showNotes() {
    const notes = [...pair.notes]
    const usual = TRAINED.join('/')
    if (pair.window && pair.window.join('/') !== usual)
        notes.push(`the network was trained with the window ${usual}: it has not seen such images`)
    const item = note => Object.assign(document.createElement('li'), {textContent: note})
    $('notes').replaceChildren(...notes.map(item))
}

// --- Files

let turn = Promise.resolve()
const open = () => { turn = turn.then(openBoth) } // one pair after the other

async function openBoth() {
    const [ct, mri] = inputs.map(input => input.files[0])
    pair?.close()
    pair = undefined
    result.hidden = $('error').hidden = true
    if (!ct || !mri) return say(ct || mri ? `Choose the ${ct ? 'MRI' : 'CT'} as well.` : 'Ready.')
    say('Reading …')
    try {
        pair = await openPair(ct, mri)
        await show()
        fuse().catch(fail)
    } catch (e) {
        result.hidden = true
        fail(e)
    }
}

async function openPair(ctFile, mriFile) {
    const same = ['name', 'size', 'lastModified'].every(k => ctFile[k] === mriFile[k])
    if (same) throw new Refused(`CT and MRI are the same file, ${ctFile.name}: choose two different ones`)
    const ct = await read(ctFile), mri = await read(mriFile)
    const [isVolume, other] = [ct, mri].map(file => file.kind === 'nifti')
    if (isVolume === other) return isVolume ? Volumes.open(ct, mri) : Pictures.open(ct, mri)
    const [volume, picture] = isVolume ? [ct, mri] : [mri, ct]
    throw new Refused(`${volume.name} is a volume and ${picture.name} a picture: choose two of one kind`)
}

function put(files) { // CT and MRI; undefined: none
    files.forEach((file, i) => {
        const transfer = new DataTransfer()
        if (file) transfer.items.add(file)
        inputs[i].files = transfer.files
    })
    open()
}

// Two files by their names, one where it was dropped, where its name says, or where there is none.
function drop(files, target) {
    const is = (i, file) => NAMED[i].test(file.name) && !NAMED[1 - i].test(file.name)
    const [first, second] = files
    if (second) return put(is(1, first) || is(0, second) ? [second, first] : [first, second])
    const here = inputs.findIndex(input => target.closest?.('.drop')?.contains(input))
    const named = [0, 1].findIndex(i => is(i, first)), free = inputs.findIndex(input => !input.files.length)
    const to = [here, named, free].find(i => i >= 0) ?? 0
    put(inputs.map((input, i) => i === to ? first : input.files[0]))
}

// --- The result

async function show() {
    const isVolume = pair instanceof Volumes
    result.className = isVolume ? 'volumes' : 'pictures'
    result.hidden = false
    $('save').disabled = true
    $('progress').hidden = !isVolume
    $('save').textContent = `Save the fused ${isVolume ? 'volume' : 'picture'}`
    showNotes()
    if (isVolume) {
        pair.blend(blend())
        viewer ??= await Viewer.on([...document.querySelectorAll('figure .volume canvas')])
        await viewer.show(pair.grid, pair.shown, voxel => { pair.at = voxel; look() })
        $('plane').value = Object.keys(PLANES).find(plane => PLANES[plane] === pair.axis)
        showWindow()
        look()
        showBlend()
    } else draw()
}

async function fuse() {
    const fusing = pair, start = performance.now()
    $('save').disabled = true
    say('Fusing …')
    const done = await fusing.fuse(await engine, (n, all) => {
        Object.assign($('progress'), {value: n, max: all})
        if (fusing === pair && performance.now() > nextView) draw()
    })
    if (!done || fusing !== pair) return
    draw()
    $('save').disabled = false
    $('progress').hidden = true
    say(`Fused in ${((performance.now() - start)/1000).toFixed(2)} s, in this browser.`)
}

const blend = () => $('blend').valueAsNumber/100

function draw() {
    const start = performance.now()
    if (pair instanceof Pictures) pair.draw(pictures, blend())
    else {
        pair.blend(blend())
        viewer.update(1, pair.shown[1])
    }
    showBlend()
    nextView = performance.now() + 500 + 4*(performance.now() - start) // a fifth of the time at most
}

function showBlend() { // in words
    const other = Math.round(Math.abs(200*blend() - 100)), name = blend() < .5 ? 'CT' : 'MRI'
    $('seen').textContent = other ? `${100 - other}% fused, ${other}% ${name}` : 'Fused'
    $('blend').setAttribute('aria-valuetext', $('seen').textContent)
}

function look() { // at the voxel and the plane that are chosen
    const plane = $('plane').value, axis = PLANES[plane], n = pair.grid.size[axis]
    Object.assign($('slice'), {max: n - 1, value: pair.at[axis]})
    $('slice-number').value = `${pair.at[axis] + 1} of ${n}`
    viewer.look(plane, pair.at)
}

function showWindow() {
    const name = Object.keys(WINDOWS).find(k => String(WINDOWS[k]) === String(pair.window));
    [$('center').value, $('width').value] = pair.window
    $('window').value = name ?? 'custom'
}

async function setWindow(window) {
    if (!window.every(Number.isFinite) || window[1] <= 0) return showWindow() // the last possible one
    pair.setWindow(window)
    viewer.update(0, pair.shown[0])
    $('progress').hidden = false
    showWindow()
    showNotes()
    await fuse().catch(fail)
}

async function save() {
    const file = await pair.save(), link = document.createElement('a')
    Object.assign(link, {href: URL.createObjectURL(file), download: file.name})
    link.click()
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000)
}

// --- Events

for (const input of inputs) input.onchange = open
$('swap').onclick = () => put(inputs.map(input => input.files[0]).reverse())
$('blend').oninput = () => draw()
$('plane').onchange = () => look()
$('slice').oninput = () => { pair.at[PLANES[$('plane').value]] = $('slice').valueAsNumber; look() }
$('window').append(...[...Object.keys(WINDOWS), 'custom'].map(name => new Option(name)))
$('window').onchange = () => setWindow(WINDOWS[$('window').value] ?? pair.window)
for (const id of ['center', 'width'])
    $(id).onchange = () => setWindow([$('center').valueAsNumber, $('width').valueAsNumber])
$('save').onclick = () => save().catch(fail)

addEventListener('dragover', e => { e.preventDefault(); document.body.classList.add('dragged') }, true)
addEventListener('dragleave', () => document.body.classList.remove('dragged'))
addEventListener('drop', e => {
    e.preventDefault()
    document.body.classList.remove('dragged')
    if (e.dataTransfer.files.length) drop([...e.dataTransfer.files], e.target)
}, true)

try { // the choice that was made on the other pages
    const theme = localStorage.getItem('quarto-color-scheme')
    if (theme) document.documentElement.dataset.theme = theme === 'alternate' ? 'dark' : 'light'
} catch { /* no storage: what the system prefers */ }

async function fetched(name) {
    const response = await fetch(name)
    if (!response.ok) throw new Error(`${name} is missing`)
    return new File([await response.blob()], name)
}

async function prepare([id, names]) {
    const files = await Promise.all(names.map(fetched))
    $(id).onclick = () => put(files)
    $(id).disabled = false
}

async function start() { // all is loaded now: no network is needed later
    await Promise.all([engine, ...Object.entries(EXAMPLES).map(prepare)])
    if (!inputs.some(input => input.files.length)) say('Ready.')
    document.body.dataset.ready = true
}
start().catch(fail)
