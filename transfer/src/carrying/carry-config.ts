import { homedir, userInfo } from 'node:os';
import { join } from 'node:path';
import type { Carrier } from './carrier.js';

/** The folders a carrier works with when no option names others. */
export type CarryPlaces = { carrier: Carrier; outbox?: string; inbox?: string };

/**
 * Reads where a carrier's state lies (`SALLYPORT_CARRY_STATE`, else `XDG_STATE_HOME` or
 * `~/.local/state`) and which folders of a network are near (`OUTBOX_DIR`, `INBOX_DIR`).
 */
export function readCarryPlaces(
  env: Record<string, string | undefined> = process.env,
): CarryPlaces {
  const home = env['XDG_STATE_HOME'] || join(homedir(), '.local', 'state');
  const state = env['STATE_DIR'];
  const outbox = env['OUTBOX_DIR'] || (state ? join(state, 'outbox') : undefined);
  const inbox = env['INBOX_DIR'] || (state ? join(state, 'inbox') : undefined);
  return {
    carrier: {
      name: userInfo().username,
      folder: env['SALLYPORT_CARRY_STATE'] || join(home, 'sallyport-carry'),
    },
    ...(outbox === undefined ? {} : { outbox }),
    ...(inbox === undefined ? {} : { inbox }),
  };
}
