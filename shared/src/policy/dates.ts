const NOW = /^now((?:[+-]\d{0,9}[yMwdhHms]|\/[yMwdhHms])*)$/;
const STEP = /([+-])(\d*)([yMwdhHms])|\/([yMwdhHms])/y;
const DATE =
  /^(\d{4})(?:-(\d\d)(?:-(\d\d)(?:T(?:(\d\d)(?::(\d\d)(?::(\d\d)(?:[.,](\d{1,9}))?)?)?)?(Z|[+-]\d\d(?::?\d\d)?)?)?)?)?$/;
const EPOCH_MS = /^-?\d+(?:\.\d+)?$/;
const MINUTE_MS = 60_000;
const UNIT_MS: Readonly<Record<string, number>> = {
  ms: 1,
  s: 1_000,
  m: MINUTE_MS,
  h: 3_600_000,
  H: 3_600_000,
  d: 86_400_000,
  w: 604_800_000,
};
/** The shortest that a calendar interval can last, so that buckets are never counted too few. */
const CALENDAR_DAYS: Readonly<Record<string, number>> = { month: 28, quarter: 90, year: 365 };
const CALENDAR_UNITS: Readonly<Record<string, string>> = { M: 'month', q: 'quarter', y: 'year' };

/** Days of 24 hours, in milliseconds. */
export const DAY_MS = 86_400_000;

/** Whether a value of a date field is relative to the moment of the search. */
export function isRelative(value: unknown): value is string {
  return typeof value === 'string' && value.startsWith('now');
}

/** The moment, in whole seconds, as the anchor of date math. */
export function dateAnchor(now: Date): string {
  return `${now.toISOString().slice(0, 19)}Z||`;
}

/**
 * A relative date as Elasticsearch reads it later and anywhere: `now-7d/d` becomes
 * `2026-09-01T10:00:02Z||-7d/d`. Undefined when the text is no date math.
 */
export function pinDate(text: string, anchor: string): string | undefined {
  const math = NOW.exec(text)?.[1];
  return math === undefined ? undefined : anchor + math;
}

/**
 * What Elasticsearch's default format (`strict_date_optional_time||epoch_millis`, with date math
 * after `||`) makes of an absolute date, in epoch milliseconds; undefined when it is none of these.
 * `roundUp` is true for gt and lte: what is missing or rounded is filled up to its last moment.
 */
export function dateMs(
  value: string | number,
  { roundUp = false, zone = 'Z' } = {},
): number | undefined {
  const text = String(value);
  const mark = text.indexOf('||');
  const offsetMs = zoneMs(zone);
  if (mark === -1) return absoluteMs(text, roundUp, offsetMs);
  const base = absoluteMs(text.slice(0, mark), false, offsetMs);
  if (base === undefined) return undefined;
  const local = applyMath(base + offsetMs, text.slice(mark + 2), roundUp);
  return local === undefined ? undefined : local - offsetMs;
}

/** The shortest that an interval of a date histogram can last, in milliseconds. */
export function intervalMs(interval: string): number {
  const [, count, unit = interval] = /^(\d+)([a-zA-Z]+)$/.exec(interval) ?? [];
  const days = CALENDAR_DAYS[unit] ?? CALENDAR_DAYS[CALENDAR_UNITS[unit] ?? ''];
  const one = days === undefined ? (UNIT_MS[unit] ?? UNIT_MS[unit.charAt(0)] ?? 1) : days * DAY_MS;
  return Number(count ?? 1) * one;
}

function zoneMs(zone: string): number {
  const [, sign, hours, minutes] = /^([+-])(\d\d):?(\d\d)?$/.exec(zone) ?? [];
  if (sign === undefined) return 0;
  return (sign === '-' ? -1 : 1) * (Number(hours) * 60 + Number(minutes ?? 0)) * MINUTE_MS;
}

function absoluteMs(text: string, roundUp: boolean, offsetMs: number): number | undefined {
  const match = DATE.exec(text);
  if (!match) return EPOCH_MS.test(text) ? inRange(Number(text)) : undefined;
  const [, year, month = '01', day = '01', hour, minute, second, fraction, zone] = match;
  const midnight = new Date(0).setUTCFullYear(Number(year), Number(month) - 1, Number(day));
  // JavaScript takes 31 February for 3 March; Elasticsearch refuses it.
  if (Number(month) > 12 || new Date(midnight).getUTCDate() !== Number(day)) return undefined;
  const parts = [Number(hour ?? (roundUp ? 23 : 0)), Number(minute ?? (roundUp ? 59 : 0))] as const;
  const seconds = Number(second ?? (roundUp ? 59 : 0));
  if (parts[0] > 23 || parts[1] > 59 || seconds > 59) return undefined;
  const ms =
    fraction === undefined ? (roundUp ? 999 : 0) : Number(fraction.padEnd(3, '0').slice(0, 3));
  const local = midnight + ((parts[0] * 60 + parts[1]) * 60 + seconds) * 1_000 + ms;
  return local - (zone === undefined ? offsetMs : zoneMs(zone));
}

function applyMath(start: number, math: string, roundUp: boolean): number | undefined {
  if (math === '') return start;
  const date = new Date(start);
  let done = 0;
  while (done < math.length) {
    STEP.lastIndex = done;
    const [step, sign, count, unit = '', rounding] = STEP.exec(math) ?? [];
    if (step === undefined) return undefined;
    if (rounding !== undefined) round(date, rounding, roundUp);
    else add(date, (sign === '-' ? -1 : 1) * Number(count === '' ? 1 : count), unit);
    done += step.length;
  }
  return inRange(date.getTime());
}

function add(date: Date, count: number, unit: string): void {
  const ms = UNIT_MS[unit];
  if (ms !== undefined) {
    date.setTime(date.getTime() + count * ms);
    return;
  }
  const day = date.getUTCDate();
  date.setUTCDate(1);
  date.setUTCMonth(date.getUTCMonth() + count * (unit === 'y' ? 12 : 1));
  // The 31st plus a month ends on the last day of that month.
  const last = new Date(Date.UTC(date.getUTCFullYear(), date.getUTCMonth() + 1, 0)).getUTCDate();
  date.setUTCDate(Math.min(day, last));
}

/** To the first moment of the unit, or with `roundUp` to its last. */
function round(date: Date, unit: string, roundUp: boolean): void {
  if (unit === 'y') date.setUTCMonth(0, 1);
  if (unit === 'M') date.setUTCDate(1);
  if (unit === 'w') date.setUTCDate(date.getUTCDate() - ((date.getUTCDay() + 6) % 7));
  const grain = Math.min(UNIT_MS[unit] ?? DAY_MS, DAY_MS);
  date.setTime(Math.floor(date.getTime() / grain) * grain);
  if (!roundUp) return;
  add(date, 1, unit);
  date.setTime(date.getTime() - 1);
}

function inRange(ms: number): number | undefined {
  return Math.abs(ms) <= 8.64e15 ? ms : undefined;
}
