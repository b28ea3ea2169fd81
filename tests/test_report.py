"""The reports in headless Chromium: they sort, filter and flicker by mouse and by keyboard, ask for nothing,
and show whatever a record says as text.

Screenshots go to the folder named by MEDFUSION_SCREENSHOTS, if any.
"""
import os
import re
import shutil
import time
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from medfusion_nb.core import printable
from medfusion_nb.phantom import phantom_volume
from medfusion_nb.report import by_doubt, cohort_page, study_page

CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
FLAGS = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
         '--disable-background-networking', '--disable-component-update', '--disable-sync']
ATTACKS = ('<script>alert(1)</script>', '"><img src=x onerror=alert(1)>', "'><svg onload=alert(1)>",
           '</style><style>*{display:none}', '\x1b[2J\u202e\x00\ud800')

sync_api = pytest.importorskip('playwright.sync_api',
                               reason='playwright is not installed: pip install playwright')
pytestmark = [pytest.mark.browser,
              pytest.mark.skipif(CHROMIUM is None,
                                 reason='no Chromium on this machine: apt-get install chromium')]


def registration(grade='trusted', **figures):
    "One as a record holds it."
    usual = dict(mi_before=.31, mi_after=.52, rotation_deg=8.4, translation_mm=12.1, moved_mm=13., overlap=.98,
                 prominence=.31, weakest_half=.27, mirror=.78, back_mm=.3, error_mm=.5, score=.95, grade=grade,
                 reason='expected error 0.5 mm', trusted=grade == 'trusted', transform=[0.]*9)
    return usual | figures


def study(subject='sub-01', status='trusted', **more):
    "A record."
    usual = dict(
        program='medfusion_nb 0.2.0', format=2, scans=['CT', 'MRI'], window=[40., 80.], size=[128, 128, 40],
        spacing_mm=[1.8, 1.8, 4.5], space_of='ct', alignment='registration', aligned_by='a registration', trusted=True,
        registration=registration(), labels=dict(space_of='mri', ml={'3': dict(made=1.2, carried=1.2, out_of_view=0.)}),
        gaps_mm={'CT': [[10., 20.]]}, notes=['CT: gantry tilt of 12 degrees is corrected'], deidentified=True,
        subject=subject, status=status, error=None, more=dict(site='Leeds', age='64'),
        inputs=[dict(role='CT', kind='DICOM', files=40, bytes=21_345_678, digest='0123456789abcdef', path=None),
                dict(role='MRI', kind='NIfTI', files=1, bytes=8_123_456, digest='fedcba9876543210', path=None)],
        options=dict(register='auto', grid='ct'), command=None, network='compact', seconds=4.2,
        versions=dict(medfusion_nb='0.2.0', python='3.11.2', SimpleITK='2.5.0'),
        finished='2026-11-30T06:00:00+00:00', outputs={'fused.nii.gz': 1_234_567}, page=f'{subject}/report.html')
    return usual | more


def cohort(n):
    "Records of all ends: one failed, one refused, two doubted, one not registered, one not run."
    rng, rows = np.random.default_rng(0), []
    for i in range(n):
        figures = dict(score=float(1 - rng.beta(1, 12)), error_mm=float(rng.lognormal(-.7, .4)), mirror=float(rng.normal(.78, .03)),
                       overlap=float(1 - rng.beta(1, 40)), weakest_half=float(rng.normal(.27, .04)), moved_mm=float(rng.lognormal(1.5, .6)))
        rows.append(study(f'sub-{i + 1:04d}', registration=registration(**figures), more=dict(site=f'site {i % 3 + 1}')))
    rows[5] |= dict(status='failed', registration=None, error='no CT in the folder: name a folder with one\n  0: 40 slices, MR')
    rows[7] |= dict(status='refused', registration=registration('refused', score=.04, error_mm=8.8, weakest_half=.02))
    rows[9] |= dict(status='look at it', registration=registration('look at it', score=.5, error_mm=2.9))
    rows[10] |= dict(status='look at it', registration=registration('look at it', score=.6, error_mm=2.1))
    rows[12] |= dict(status='not registered', registration=None)
    rows[13] |= dict(status='not run', registration=None, page=None)
    return rows


RUN = dict(title='Stroke, two sites', program='medfusion_nb 0.2.0', options=dict(register='auto'), finished='2026-11-30T06:00:00+00:00',
           versions=dict(medfusion_nb='0.2.0'), left_out=['row 12: subject sub-0001 is named twice'])


@pytest.fixture(scope='module')
def volumes():
    "CT, MRI and something fused, in [0,1]."
    head = phantom_volume((128, 128, 40), (1.8, 1.8, 4.5), seed=1)
    ct, mri = (sitk.Clamp(sitk.Cast(v, sitk.sitkFloat32)/by, sitk.sitkFloat32, 0, 1)
               for v, by in ((head.ct, 80), (head.mri, 1000)))
    return ct, mri, sitk.Maximum(ct, mri)


class Page:
    "A page from a file, driven as a reader does; what it asks for and complains of is kept."
    def __init__(self, context, path):
        self.page, self.errors, self.requests, self.reached = context.new_page(), [], [], []
        self.page.on('pageerror', lambda e: self.errors.append(str(e)))
        self.page.on('console', lambda m: self.errors.append(m.text) if m.type in ('error', 'warning') else None)
        self.page.on('dialog', lambda d: (self.errors.append(f'dialog {d.message}'), d.dismiss()))
        self.page.on('request', lambda r: self.requests.append(r.url))
        self.page.route('**', self.routed)
        self.path = path
        self.page.goto(path.as_uri())

    def routed(self, route):
        self.reached.append(route.request.url)
        if route.request.url == self.path.as_uri(): route.continue_()
        else: route.abort()

    def shown(self): return self.page.locator('.flicker').get_attribute('data-shown')
    def turns_to(self, of):
        sync_api.expect(self.page.locator('.flicker')).to_have_attribute('data-shown', of, timeout=3000)

    def button(self, name): return self.page.get_by_role('button', name=name, exact=True)
    def subjects(self): return self.page.locator('.studies tbody tr:visible th').all_inner_texts()

    def screenshots(self, what):
        "The whole page, on a desktop and on a phone, in light and dark."
        folder = os.environ.get('MEDFUSION_SCREENSHOTS')
        for width, look in product((1280, 390), ('light', 'dark')) if folder else ():
            self.page.set_viewport_size(dict(width=width, height=900))
            self.page.emulate_media(color_scheme=look)
            self.page.screenshot(path=Path(folder)/f'report_{what}_{width}_{look}.png', full_page=True)
        self.page.set_viewport_size(dict(width=1280, height=900))


@pytest.fixture(scope='module')
def browser():
    with sync_api.sync_playwright() as p:
        b = p.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield b
        b.close()


@pytest.fixture
def opened(browser, tmp_path):
    "Opens pages; in the end nothing went wrong, and nothing but the file was asked for."
    pages, contexts = [], []
    def open_page(html, **context):
        path = tmp_path/f'page {len(pages)}.html'
        path.write_text(html, encoding='utf-8')
        contexts.append(browser.new_context(viewport=dict(width=1280, height=900), **context))
        pages.append(Page(contexts[-1], path))
        return pages[-1]
    yield open_page
    for c in contexts: c.close()
    for p in pages:
        assert p.errors == []
        asked = [url for url in p.requests if not url.startswith('data:')]
        assert asked == [p.path.as_uri()]*len(asked) and asked, asked


def test_flicker(opened, volumes):
    "It starts by itself, and obeys buttons, keys and the choice of lines."
    p = opened(study_page(study(), *volumes))
    p.screenshots('study')
    assert p.page.locator('h1').inner_text() == 'sub-01'
    p.turns_to('mri')
    p.turns_to('ct')
    p.button('Pause').click()
    still = p.shown()
    p.page.wait_for_timeout(1600)
    assert p.shown() == still and p.button('Play').count() == 1
    for name, of in (('MRI', 'mri'), ('CT', 'ct')):
        p.button(name).click()
        assert p.shown() == of and p.button(name).get_attribute('aria-pressed') == 'true'
        picture, other = (p.page.locator(f'.flicker img.{k}').first for k in (of, 'mri' if of == 'ct' else 'ct'))
        assert picture.is_visible() and not other.is_visible()
    p.page.locator('.flicker .three').focus()
    p.page.keyboard.press('m')
    assert p.shown() == 'mri'
    p.page.keyboard.press('p')
    assert p.button('Pause').count() == 1
    p.page.keyboard.press('p')
    p.page.keyboard.press('c')
    lines = {k: p.page.locator(f'.flicker svg.of-{k}').first for k in ('ct', 'mri')}
    for choice, key, drawn in (('CT on both', 'c', 'ct'), ('CT on both', 'm', 'ct'), ('each its own', 'c', 'ct'),
                               ('each its own', 'm', 'mri'), ('none', 'm', '')):
        p.page.get_by_label(choice).check()
        p.page.locator('.flicker .three').focus()
        p.page.keyboard.press(key)
        assert [k for k, line in lines.items() if line.is_visible()] == [drawn]*bool(drawn)
    size = p.page.evaluate('[...document.querySelectorAll("img")].map(i => i.complete && i.naturalWidth)')
    assert len(size) == 12 + 6 and min(size) > 40


def test_flicker_does_not_start_where_motion_is_unwanted(opened, volumes):
    p = opened(study_page(study(), *volumes), reduced_motion='reduce')
    p.page.wait_for_timeout(1500)
    assert p.shown() == 'ct' and p.button('Play').count() == 1
    p.page.locator('.play').focus()
    p.page.keyboard.press('Space')
    p.turns_to('mri')


def test_speed(opened, volumes):
    "Three changes a second at most."
    p = opened(study_page(study(), *volumes))
    p.page.evaluate('''() => { window.n = 0; new MutationObserver(() => window.n++)
        .observe(document.querySelector('.flicker'), { attributeFilter: ['data-shown'] }) }''')
    p.page.locator('.speed').focus()
    p.page.keyboard.press('End')
    p.page.evaluate('window.n = 0')
    p.page.wait_for_timeout(2200)
    assert 4 <= p.page.evaluate('window.n') <= 7


def test_refused_and_failed(opened, volumes):
    said = study('sub-02', 'refused', registration=registration('refused', score=.1, reason='the mirror image fits'))
    p = opened(study_page(said | dict(error='the registration is refused', cohort='../report.html'), *volumes[:2]))
    p.screenshots('refused')
    assert p.page.locator('main img:visible').count() > 9 and p.page.get_by_text('fused, axial').count() == 0
    assert p.page.get_by_role('link', name='All studies').get_attribute('href') == './../report.html'
    error = 'CT folder holds 2 series:\n  0: 40 slices\n  1: 12 slices'
    p = opened(study_page(study('sub-03', 'failed', registration=None, error=error)))
    p.screenshots('failed')
    assert p.page.locator('.error').inner_text() == error and p.page.locator('img').count() == 0


def test_the_banner_stays(opened, volumes):
    p = opened(study_page(study(), *volumes))
    p.page.mouse.wheel(0, 5000)
    p.page.wait_for_timeout(300)
    box = p.page.locator('.banner').bounding_box()
    assert p.page.evaluate('scrollY') > 500 and abs(box['y']) < 1 and 'RESEARCH ONLY' in p.page.locator('.banner').inner_text()


def test_sorting(opened):
    "By mouse and keyboard; what is missing comes last either way."
    rows = cohort(40)
    p = opened(cohort_page(rows, RUN))
    p.screenshots('cohort')
    doubt = [r['subject'] for r in by_doubt(rows)]
    assert p.subjects() == doubt and doubt[:4] == ['sub-0006', 'sub-0008', 'sub-0010', 'sub-0011']
    def sort(column): return p.page.get_by_role('columnheader', name=column).get_by_role('button')
    sort('subject').click()
    assert p.subjects() == sorted(doubt)
    head = p.page.get_by_role('columnheader', name='score')
    def scores(): return [float(x or 'nan') for x in p.page.locator('.studies tbody tr td:nth-child(6)').all_inner_texts()]
    sort('score').focus()
    p.page.keyboard.press('Enter')
    up = scores()
    assert head.get_attribute('aria-sort') == 'ascending' and np.all(np.diff(up[:-3]) >= 0) and np.isnan(up[-3:]).all()
    p.page.keyboard.press('Space')
    down = scores()
    assert head.get_attribute('aria-sort') == 'descending' and np.all(np.diff(down[:-3]) <= 0) and np.isnan(down[-3:]).all()
    assert p.page.locator('[aria-sort]').count() == 1
    sort('doubt').click()
    assert p.subjects() == doubt
    sort('site').click()
    assert p.page.locator('.studies tbody tr td:last-child').first.inner_text() == 'site 1'


def test_filter_and_links(opened):
    rows = cohort(40)
    p = opened(cohort_page(rows, RUN))
    p.button('look at it 2').click()
    assert p.subjects() == ['sub-0010', 'sub-0011'] and p.page.locator('.count').inner_text() == '2 of 40 shown'
    p.page.get_by_label('Filter').fill('SUB-0011')
    assert p.subjects() == ['sub-0011']
    p.button('trusted 34').click()
    p.page.get_by_label('Filter').fill('site 2')
    assert len(p.subjects()) == sum(r['status'] == 'trusted' and r['more']['site'] == 'site 2' for r in rows)
    p.page.get_by_label('Filter').fill('nobody')
    assert p.subjects() == []
    links = p.page.locator('.strip a, .studies a').evaluate_all('l => l.map(a => a.getAttribute("href"))')
    assert {*links} == {f'./{r["page"]}' for r in rows if r['page']}
    named = p.page.locator('.strip .name').all_inner_texts()
    assert {'sub-0008', 'sub-0010'} <= {*p.page.locator('.strip .name').all_text_contents()}, named


def test_without_script(opened, volumes):
    "The table is there, in the order of doubt, and so are the pictures; what needs a script is not."
    rows = cohort(20)
    p = opened(cohort_page(rows, RUN), java_script_enabled=False)
    assert p.subjects() == [r['subject'] for r in by_doubt(rows)] and not p.page.locator('.controls').is_visible()
    p = opened(study_page(study(), *volumes), java_script_enabled=False)
    assert p.page.locator('img:visible').count() == 12 and not p.page.locator('.flicker').is_visible()


def hostile(x, attack):
    "A record in which each value is an attack."
    if isinstance(x, dict): return {k: hostile(v, attack) for k, v in x.items()}
    return [hostile(v, attack) for v in x] if isinstance(x, list) and x else attack


@pytest.mark.parametrize('attack', ATTACKS)
def test_texts_stay_texts(opened, volumes, attack):
    "In each field, and in each name that is free."
    said = hostile(study(), attack)
    said |= {k: {attack: attack} for k in ('more', 'options', 'versions', 'outputs')} | dict(gaps_mm={attack: [[1, 2]]})
    pages = [study_page(said, *volumes), study_page(said | dict(registration=registration(reason=attack))),
             cohort_page([*cohort(20), said, said | dict(status='trusted', registration=registration(score=-9.))],
                         {k: attack for k in RUN} | dict(left_out=[attack], options={attack: attack}))]
    for html in pages:
        p = opened(html)
        seen = p.page.locator('body').text_content()
        assert seen.count(printable(attack)) > 5
        assert p.page.locator('script').count() == 1 and p.page.locator('[onerror], [onload]').count() == 0
        assert p.page.locator('h1').is_visible()
        if p.page.locator('.flicker').count(): p.button('MRI').count() or p.page.locator('[data-show=mri]').click()
        else: p.page.locator('.studies thead button').first.click() if p.page.locator('.studies').count() else None
        links = p.page.locator('a').evaluate_all('l => l.map(a => a.href instanceof Object ? a.href.baseVal : a.href)')
        assert all(url.startswith(('file:///', './')) for url in links)


def test_the_policy_holds(opened, volumes):
    "What would slip in is not run, and what it asks for is not fetched."
    html = study_page(study(), *volumes).replace('</main>', '<script>window.run = 1</script>'
        '<img src="https://example.org/a.png" onerror="window.run = 1"><style>h1 { display: none }</style></main>')
    p = opened(html)
    p.page.wait_for_timeout(300)
    assert p.page.evaluate('window.run') is None and p.page.locator('h1').is_visible()
    assert len(p.errors) >= 3 and all('Content Security Policy' in e for e in p.errors)
    assert not [url for url in p.reached if 'example' in url] # it was stopped within the browser
    p.errors.clear()
    p.requests[:] = [url for url in p.requests if 'example' not in url]


def test_a_thousand(opened, record_property):
    "A large cohort opens, sorts and filters at once."
    html = cohort_page(cohort(1000), RUN)
    start = time.perf_counter()
    p = opened(html)
    sync_api.expect(p.page.locator('.count')).to_have_text('1000 of 1000 shown')
    loaded = time.perf_counter() - start
    def took(what): return p.page.evaluate(f'''() => {{ const s = performance.now(); {what};
        document.body.offsetHeight; return performance.now() - s }}''')/1000
    sort = took('document.querySelectorAll(".studies thead button")[4].click()')
    words = took('''const f = document.querySelector("[type=search]"); f.value = "site 2"; f.dispatchEvent(new Event("input"))''')
    record_property('told', f'1000 studies: {len(html)/1e6:.2f} MB, opened in {loaded:.2f} s, '
                            f'sorted in {sort:.2f} s, filtered in {words:.2f} s')
    assert len(html) < 3e6 and loaded < 8 and sort < 2 and words < 2
    p.page.screenshot(path=Path(os.environ['MEDFUSION_SCREENSHOTS'])/'report_thousand.png', full_page=False
                      ) if os.environ.get('MEDFUSION_SCREENSHOTS') else None


def luminance(rgb):
    "Relative luminance of a colour (WCAG)."
    c = np.array(rgb)/255
    return np.where(c <= .04045, c/12.92, ((c + .055)/1.055)**2.4) @ [.2126, .7152, .0722]


@pytest.mark.parametrize('look', ['light', 'dark'])
def test_contrast(opened, volumes, look):
    "Every text stands out from what is behind it, 4.5 to 1."
    for html in (study_page(study('sub-02', 'refused', error='no'), *volumes), cohort_page(cohort(20), RUN)):
        p = opened(html, color_scheme=look)
        found = p.page.evaluate('''() => [...document.querySelectorAll('body *')].filter(e => e.checkVisibility() &&
            [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()) && !e.closest('svg')).map(e => {
            let b = e
            while (b && getComputedStyle(b).backgroundColor === 'rgba(0, 0, 0, 0)') b = b.parentElement
            return [e.textContent.slice(0, 30), getComputedStyle(e).color, getComputedStyle(b || document.body).backgroundColor] })''')
        assert len(found) > 40
        for text, *colors in found:
            a, b = sorted(float(luminance([int(x) for x in re.findall(r'\d+', c)[:3]])) for c in colors)
            assert (b + .05)/(a + .05) >= 4.5, (text, colors)
