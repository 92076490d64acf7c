import { SallyportError } from '@sallyport/shared';

/** The windows of class submit, in the order in which the database tells them. */
export const WINDOWS = ['minute', 'hour', 'day'] as const;
export type LimitWindow = (typeof WINDOWS)[number];
export type LimitState = 'normal' | 'warning' | 'grace' | 'blocked';
export type Verdict = 'admit' | 'open' | 'cost' | 'ceiling' | 'grace_spent';

/** How one subject's windows judged a call; a window without a limit has nulls. */
type Judgement = {
  cost: number[];
  quota: (number | null)[];
  warn: number[];
  ceiling: number[];
  /** Before the call. */
  used: number[];
  verdict: Verdict[];
  most: number[];
  wait_s: number[];
  free_s: number[];
  free_after_s: number[];
  ends_in_s: (number | null)[];
  rearms_in_s: (number | null)[];
};

/** What the SQL function `charge_submit` says of a call. */
export type Charge = {
  refusal:
    | 'blocked'
    | 'cost-exceeds-limit'
    | 'rate-limited'
    | 'open-requests-limit'
    | 'stored-bytes-limit'
    | null;
  blocked: { until: string | null; reason: string } | null;
  grace_s: number;
  user: Judgement;
  key: Judgement | null;
  open_used: number;
  open_most: number;
  bytes_used: number;
  bytes_most: number;
};

/** One window as people see it; times in whole seconds from now. */
export type WindowView = {
  subject: 'user' | 'key';
  window: LimitWindow;
  span_s: number;
  state: LimitState;
  reason: 'cost' | 'ceiling' | 'grace_spent' | null;
  used: number;
  limit: number;
  warn: number;
  ceiling: number;
  remaining: number;
  /** Until one more fits under the limit. */
  free_in_s: number;
  grace: {
    length_s: number;
    ends_in_s: number | null;
    rearms_in_s: number | null;
    /** Grace was used and cannot open again yet: the limit is hard. */
    spent: boolean;
  };
};

const SPAN_S = { minute: 60, hour: 3_600, day: 86_400 };
const SHORT = { minute: 'min', hour: 'hour', day: 'day' };
const JITTER = 0.1;
/** When a look at one's open requests or kept results is worth it. */
const QUOTA_RETRY_S = 60;

/** The windows after an admitted call, or as they stand after a refused one. */
export function viewWindows(charge: Charge): WindowView[] {
  const subjects = [
    ['user', charge.user],
    ['key', charge.key],
  ] as const;
  return subjects.flatMap(([subject, judged]) =>
    WINDOWS.flatMap((_, n) =>
      judged?.quota[n] ? [viewWindow(charge, { subject, judged, n })] : [],
    ),
  );
}

/** The largest cost that every window would admit now; the minute counts calls. */
export function maxCostNow({ user, key }: Charge): number {
  const all = [user, key].flatMap((judged) =>
    judged ? judged.most.map((most, n) => ({ most, n })) : [],
  );
  return Math.min(
    ...all.flatMap(({ most, n }) => {
      if (most === null) return [];
      return most < 1 ? [0] : n === 0 ? [] : [most];
    }),
  );
}

/** `RateLimit-Policy` and `RateLimit` (draft-ietf-httpapi-ratelimit-headers-10) of a counted call. */
export function limitHeaders(windows: readonly WindowView[]): Record<string, string> {
  const policies = windows.map(
    (view) =>
      `"${policyName(view)}";q=${view.limit};w=${view.span_s};sp-warn=${view.warn}` +
      `;sp-ceil=${view.ceiling};sp-grace=${view.grace.length_s}`,
  );
  const states = windows.map((view) => {
    const { state, grace, used, ceiling } = view;
    const left = grace.ends_in_s === null ? '' : `;sp-grace-left=${grace.ends_in_s}`;
    const room = state === 'grace' ? `;sp-ceil-left=${Math.max(0, ceiling - used)}` : '';
    const spent = grace.spent ? ';sp-spent' : '';
    const name = policyName(view);
    return `"${name}";r=${view.remaining};t=${view.free_in_s};sp-state=${state}${left}${room}${spent}`;
  });
  return { 'RateLimit-Policy': policies.join(', '), RateLimit: states.join(', ') };
}

/** The problem document of a call that was refused. */
export function refuseCharge(charge: Charge & { refusal: NonNullable<Charge['refusal']> }) {
  const windows = viewWindows(charge);
  const headers = limitHeaders(windows);
  switch (charge.refusal) {
    case 'blocked':
      return refuseBlocked(charge.blocked);
    case 'cost-exceeds-limit':
      return refuseCost(charge, windows, headers);
    case 'rate-limited':
      return refuseLimited(charge, windows, headers);
    case 'open-requests-limit':
      return new SallyportError(
        'open-requests-limit',
        `${charge.open_used} of your requests are open, ${charge.open_most} may be.`,
        {
          next: 'Wait for answers, or cancel what is not needed.',
          retryAfterS: withJitter(QUOTA_RETRY_S),
          extra: { limit: charge.open_most, used: charge.open_used },
          headers,
        },
      );
    case 'stored-bytes-limit':
      return new SallyportError(
        'stored-bytes-limit',
        `Your results take ${charge.bytes_used} bytes, ${charge.bytes_most} may be kept.`,
        {
          next: 'Purge results that are not needed, or wait until their time is over.',
          retryAfterS: withJitter(QUOTA_RETRY_S),
          extra: { limit: charge.bytes_most, used: charge.bytes_used },
          headers,
        },
      );
  }
}

/** A number of seconds with up to a tenth more, so that not all come back at once. */
export function withJitter(seconds: number): number {
  return seconds + Math.floor(seconds * JITTER * Math.random());
}

function viewWindow(
  charge: Charge,
  { subject, judged, n }: { subject: 'user' | 'key'; judged: Judgement; n: number },
): WindowView {
  const window = WINDOWS[n] as LimitWindow;
  const at = <T>(values: readonly T[]) => values[n] as T;
  const admitted = charge.refusal === null;
  const limit = at(judged.quota) as number;
  const verdict = at(judged.verdict);
  const used = at(judged.used) + (admitted ? at(judged.cost) : 0);
  const reason = reasonOf(judged, n);
  // An episode that this call would have opened, had the others admitted it.
  const unopened = verdict === 'open' && !admitted;
  const endsIn = unopened ? null : at(judged.ends_in_s) || null;
  const rearmsIn = unopened ? null : at(judged.rearms_in_s);
  const state = reason
    ? 'blocked'
    : used < at(judged.warn)
      ? 'normal'
      : used <= limit
        ? 'warning'
        : 'grace';
  return {
    subject,
    window,
    span_s: SPAN_S[window],
    state,
    reason,
    used,
    limit,
    warn: at(judged.warn),
    ceiling: at(judged.ceiling),
    remaining: Math.max(0, limit - used),
    free_in_s: used < limit ? 0 : at(admitted ? judged.free_after_s : judged.free_s),
    grace: {
      length_s: charge.grace_s,
      ends_in_s: endsIn,
      rearms_in_s: rearmsIn,
      spent: rearmsIn !== null && endsIn === null,
    },
  };
}

/** Why a window refuses the call or, when nothing was to be charged, would refuse the next one. */
function reasonOf(judged: Judgement, n: number): WindowView['reason'] {
  const verdict = judged.verdict[n] as Verdict;
  if (verdict !== 'admit' && verdict !== 'open') return verdict;
  if (judged.cost[n] !== 0 || judged.most[n] !== 0) return null;
  return (judged.used[n] as number) + 1 > (judged.ceiling[n] as number) ? 'ceiling' : 'grace_spent';
}

function policyName({ subject, window }: WindowView): string {
  return subject === 'key' ? `submit-key-${SHORT[window]}` : `submit-${SHORT[window]}`;
}

function refuseBlocked(blocked: Charge['blocked']): SallyportError {
  const until = blocked?.until ?? null;
  return new SallyportError(
    'blocked',
    `An administrator has blocked your submits ${until ? `until ${until}` : 'without end'}: ` +
      `${blocked?.reason}.`,
    { next: 'Talk to an administrator.', extra: { until, reason: blocked?.reason } },
  );
}

function refuseCost(charge: Charge, windows: WindowView[], headers: Record<string, string>) {
  const tooSmall = windows.filter(({ reason }) => reason === 'cost');
  const [first] = tooSmall;
  const cost = Math.max(...charge.user.cost);
  return new SallyportError(
    'cost-exceeds-limit',
    `The call has ${cost} requests; the limit is ${first?.limit} a ${first?.window}.`,
    {
      next: 'Send fewer at once.',
      extra: {
        'violated-policies': tooSmall.map(policyName),
        max_cost_now: maxCostNow(charge),
      },
      headers,
    },
  );
}

function refuseLimited(charge: Charge, windows: WindowView[], headers: Record<string, string>) {
  const refusing = windows.filter(({ reason }) => reason !== null);
  const waitOf = ({ subject, window }: WindowView) =>
    charge[subject]?.wait_s[WINDOWS.indexOf(window)] ?? 0;
  const longest = refusing.reduce((one, other) => (waitOf(other) > waitOf(one) ? other : one));
  const waitS = withJitter(waitOf(longest));
  const { limit, window, used, reason, grace } = longest;
  return new SallyportError(
    'rate-limited',
    `${used} were counted in the ${window}, the limit is ${limit}` +
      (reason === 'grace_spent' ? ' and grace is used up.' : '.'),
    {
      next: `Try again in ${waitS} s.`,
      retryAfterS: waitS,
      extra: {
        'violated-policies': refusing.map(policyName),
        state: 'blocked',
        reason,
        grace: { ends_in_s: grace.ends_in_s, rearms_in_s: grace.rearms_in_s },
        max_cost_now: maxCostNow(charge),
      },
      headers,
    },
  );
}
