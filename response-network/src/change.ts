/** Who changes something, and when: every write takes one and leaves it in the audit log. */
export type Change = { actor: string; now: Date };
