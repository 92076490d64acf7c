import { expect } from 'chai';
import fc from 'fast-check';
import { dateAnchor, dateMs, intervalMs, isRelative, pinDate } from './dates.js';

const ANCHOR = '2026-09-01T10:00:02Z||';
const iso = (value: string | number, options?: { roundUp?: boolean; zone?: string }) => {
  const ms = dateMs(value, options);
  return ms === undefined ? undefined : new Date(ms).toISOString();
};

describe('pinDate', () => {
  it('keeps the math and puts the whole second in front', () => {
    expect(dateAnchor(new Date('2026-09-01T10:00:02.987Z'))).to.equal(ANCHOR);
    expect(pinDate('now', ANCHOR)).to.equal(ANCHOR);
    expect(pinDate('now-7d/d', ANCHOR)).to.equal(`${ANCHOR}-7d/d`);
    expect(pinDate('now+M-12H/w', ANCHOR)).to.equal(`${ANCHOR}+M-12H/w`);
  });

  it('knows no other math', () => {
    for (const text of ['nowhere', 'now-7', 'now-7x', 'now/2d', 'now||+1d', 'now -1d', 'now-1d|']) {
      expect(isRelative(text)).to.equal(true);
      expect(pinDate(text, ANCHOR)).to.equal(undefined);
    }
  });
});

describe('dateMs', () => {
  const dates: [string | number, string, string][] = [
    ['2026', '2026-01-01T00:00:00.000Z', '2026-01-01T23:59:59.999Z'],
    [2026, '2026-01-01T00:00:00.000Z', '2026-01-01T23:59:59.999Z'],
    ['2026-09', '2026-09-01T00:00:00.000Z', '2026-09-01T23:59:59.999Z'],
    ['2026-09-01', '2026-09-01T00:00:00.000Z', '2026-09-01T23:59:59.999Z'],
    ['2026-09-01T10', '2026-09-01T10:00:00.000Z', '2026-09-01T10:59:59.999Z'],
    ['2026-09-01T10:30', '2026-09-01T10:30:00.000Z', '2026-09-01T10:30:59.999Z'],
    ['2026-09-01T10:30:15+02:00', '2026-09-01T08:30:15.000Z', '2026-09-01T08:30:15.999Z'],
    ['2026-09-01T10:30:15.25Z', '2026-09-01T10:30:15.250Z', '2026-09-01T10:30:15.250Z'],
    ['2026-09-01T10:30:15.123456789-0130', '2026-09-01T12:00:15.123Z', '2026-09-01T12:00:15.123Z'],
    [1_700_000_000_000, '2023-11-14T22:13:20.000Z', '2023-11-14T22:13:20.000Z'],
    ['-1', '1969-12-31T23:59:59.999Z', '1969-12-31T23:59:59.999Z'],
    [ANCHOR, '2026-09-01T10:00:02.000Z', '2026-09-01T10:00:02.000Z'],
    [`${ANCHOR}-7d/d`, '2026-08-25T00:00:00.000Z', '2026-08-25T23:59:59.999Z'],
    [`${ANCHOR}/w`, '2026-08-31T00:00:00.000Z', '2026-09-06T23:59:59.999Z'],
    [`${ANCHOR}/M`, '2026-09-01T00:00:00.000Z', '2026-09-30T23:59:59.999Z'],
    [`${ANCHOR}/y+1y`, '2027-01-01T00:00:00.000Z', '2027-12-31T23:59:59.999Z'],
    [`${ANCHOR}-1h/h+15m-1s`, '2026-09-01T09:14:59.000Z', '2026-09-01T10:14:58.999Z'],
    ['2026-01-31||+1M', '2026-02-28T00:00:00.000Z', '2026-02-28T00:00:00.000Z'],
    ['2024-02-29||-1y', '2023-02-28T00:00:00.000Z', '2023-02-28T00:00:00.000Z'],
    ['2026-09-01||+w', '2026-09-08T00:00:00.000Z', '2026-09-08T00:00:00.000Z'],
  ];
  for (const [value, down, up] of dates) {
    it(`reads ${value}`, () => {
      expect(iso(value)).to.equal(down);
      expect(iso(value, { roundUp: true })).to.equal(up);
    });
  }

  it('reads and rounds in the zone of the range', () => {
    expect(iso('2026-09-01', { zone: '+02:00' })).to.equal('2026-08-31T22:00:00.000Z');
    expect(iso('2026-09-01T00:00:00Z', { zone: '+02:00' })).to.equal('2026-09-01T00:00:00.000Z');
    expect(iso(`${ANCHOR}/d`, { zone: '-03:30' })).to.equal('2026-09-01T03:30:00.000Z');
  });

  it('does not guess', () => {
    const strange = [
      '',
      'x',
      '2026-13-01',
      '2026-02-30',
      '2026-09-01T24:00',
      '01.09.2026',
      '2026-9-1',
    ];
    const math = [
      '2026-09-01||x',
      '2026-09-01||+1q',
      '2026||+999999999y',
      'x||-1d',
      '9'.repeat(400),
    ];
    for (const text of [...strange, ...math, '2026-09-01T10:61', 'now'])
      expect(iso(text)).to.equal(undefined);
  });

  it('agrees with JavaScript on every whole moment', () => {
    fc.assert(
      fc.property(
        fc.date({ min: new Date(0), max: new Date('9999-01-01'), noInvalidDate: true }),
        (date) => {
          expect(dateMs(date.toISOString())).to.equal(date.getTime());
        },
      ),
    );
  });
});

describe('intervalMs', () => {
  it('takes the shortest that an interval can last', () => {
    const day = 86_400_000;
    expect(
      ['90s', '1500ms', '2h', 'day', '1w', '1M', 'month', 'quarter', 'year'].map(intervalMs),
    ).to.eql([90_000, 1_500, 7_200_000, day, 7 * day, 28 * day, 28 * day, 90 * day, 365 * day]);
    expect(['1m', 'minute', 'hour', '1q', '1y'].map(intervalMs)).to.eql([
      60_000,
      60_000,
      3_600_000,
      90 * day,
      365 * day,
    ]);
  });
});
