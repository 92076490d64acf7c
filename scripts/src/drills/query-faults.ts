import pg from 'pg';
import { die, lives, never, notePoint, strikes, type Life, type PatchedClient } from './life.js';

type Query = (this: PatchedClient, ...args: unknown[]) => unknown;

/** Makes every SQL statement a point, BEGIN and COMMIT included. */
export function patchQueries(): void {
  const prototype = pg.Client.prototype as unknown as { query: Query };
  const query = prototype.query;
  prototype.query = function patchedQuery(...args) {
    const life = lives.getStore();
    if (!life) return query.apply(this, args);
    if (life.dead) return isSubmittable(args[0]) ? args[0] : never();
    life.clients.add(this);
    const text = textOf(args[0]);
    const name = statementName(this, text);
    notePoint(life, name, 'all');
    if (life.sabotage?.sql) args[0] = withText(args[0], life.sabotage.sql(text));
    const fault = strikes(life, name, 'all');
    const kill = fault?.kind === 'kill' ? fault : undefined;
    if (kill?.side === 'before') {
      void die(life, name, 'before');
      return isSubmittable(args[0]) ? args[0] : never();
    }
    if (isSubmittable(args[0])) {
      const stream = query.apply(this, args);
      if (kill) void die(life, name, 'during');
      return stream;
    }
    const finish = async () => {
      if (kill) return die(life, name, 'after');
      if (/^\s*commit/i.test(text)) await life.sabotage?.committed?.();
      return undefined;
    };
    const last = args.at(-1);
    if (typeof last === 'function') {
      const callback = last as (...results: unknown[]) => void;
      const tell = async (results: unknown[]) => {
        await lives.run(life, finish);
        if (!life.dead) callback(...results);
      };
      args[args.length - 1] = (...results: unknown[]) => void tell(results);
      const answer = query.apply(this, args);
      if (kill?.side === 'during') dieSoon(life, name);
      return answer;
    }
    const answer = query.apply(this, args) as Promise<unknown>;
    if (kill?.side === 'during') dieSoon(life, name);
    return answer.then(async (result) => {
      await finish();
      return life.dead ? never() : result;
    });
  };
}

/** Once the statement is on its way to the server. */
function dieSoon(life: Life, name: string): void {
  setImmediate(() => void die(life, name, 'during'));
}

function isSubmittable(query: unknown): boolean {
  return typeof (query as { submit?: unknown } | undefined)?.submit === 'function';
}

function textOf(query: unknown): string {
  if (typeof query === 'string') return query;
  const { text } = query as { text?: unknown };
  if (typeof text === 'string') return text;
  return isSubmittable(query) ? 'copy' : '';
}

function withText(query: unknown, text: string): unknown {
  if (typeof query === 'string') return text;
  if (!isSubmittable(query)) return { ...(query as object), text };
  return query;
}

/** `commit of update outbound_batches`: a transaction is named by what it wrote last. */
function statementName(client: PatchedClient, text: string): string {
  const control = /^\s*(begin|commit|rollback)/i.exec(text)?.[1]?.toLowerCase();
  if (control === 'begin') {
    client.drillWrote = undefined;
    return 'begin';
  }
  if (control) return `${control} of ${client.drillWrote ?? 'reads'}`;
  const write = /\b(insert into|update|delete from)\s+"?(\w+)"?/i.exec(text);
  if (write) return (client.drillWrote = `${write[1]?.toLowerCase()} ${write[2]}`);
  if (/pg_try_advisory_lock/.test(text)) return 'take advisory lock';
  if (/pg_advisory_unlock/.test(text)) return 'release advisory lock';
  if (/pg_notify/.test(text)) return 'notify';
  if (/^\s*copy/i.test(text)) return 'copy';
  const from = /\bfrom\s+"?(\w+)"?/i.exec(text)?.[1];
  if (/create temporary/.test(text)) return 'create temporary table';
  return /for update/.test(text) ? `lock ${from}` : `select ${from ?? ''}`.trim();
}
