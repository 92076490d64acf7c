import { etagOf, type Settings } from '@sallyport/shared';
import type { RequestView } from './request-schemas.js';
import { isFinal } from './requests.js';

const LEAST_S = 2;
const MOST_S = 120;
const JITTER = 0.1;

/** Whole seconds until the next event that could change a request: a seal here, else an import. */
export function retryAfterS(settings: Settings, status: RequestView['status']): number {
  const cadence =
    status === 'submitted'
      ? settings['schedule.export-requests']
      : settings['schedule.import-batches'];
  const spread = 1 + JITTER * (2 * Math.random() - 1);
  return Math.min(MOST_S, Math.max(LEAST_S, Math.round(cadence * spread)));
}

/** The headers that a view of a request travels with. */
export function viewHeaders(
  settings: Settings,
  view: Pick<RequestView, 'status' | 'version'>,
): Record<string, string> {
  const headers: Record<string, string> = { ETag: etagOf(view.version) };
  if (!isFinal(view.status)) headers['Retry-After'] = String(retryAfterS(settings, view.status));
  return headers;
}
