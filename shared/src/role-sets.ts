import type { Role } from './records.js';

/** Who may look at all that is administered and operated. */
export const READERS: readonly Role[] = ['operator', 'admin', 'auditor'];
