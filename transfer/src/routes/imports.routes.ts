import { setTimeout as delay } from 'node:timers/promises';
import { Type } from 'typebox';
import {
  PageQuery,
  READERS,
  SallyportError,
  actorOf,
  readPage,
  requireMediaType,
  type Call,
  type Principal,
  type Routes,
} from '@sallyport/shared';
import { ImportSchema, viewImport } from '../receiving/import-views.js';
import {
  cancelUpload,
  getUpload,
  listUploads,
  openUpload,
  receivePiece,
  type Upload,
} from '../receiving/uploads.js';
import { ACTORS, type OperationsContext } from './context.js';

type RawCall = Call<Principal, unknown, unknown>;

const WHOLE = 'application/octet-stream';
const PART = 'application/partial-upload';
/** A sender that is silent for so long is cut; what came is kept. */
const SILENCE_MS = 30_000;
const strict = { additionalProperties: false };
const NOT_FOUND = { description: 'There is no such import.' };
const CUT = { description: 'The sender was silent; what came is kept.' };

/** Sending files into the inbox, in one call or, after a cut, in several. */
export function addImportRoutes(routes: Routes<Principal>, context: OperationsContext): void {
  const { db, node, pageSecret: secret, queues } = context;

  const answer = async (upload: Upload, status: number, headers: Record<string, string> = {}) => {
    if (upload.state === 'received') queues.wake('import-batches');
    return {
      status,
      headers: { ...headers, ...progressOf(upload) },
      body: await viewImport(db, upload),
    };
  };

  routes.add({
    method: 'post',
    path: '/v1/imports',
    summary: 'Send a batch file, or with `Upload-Complete: ?0` its beginning or nothing yet',
    roles: ACTORS,
    rawBody: WHOLE,
    responses: {
      201: { description: 'More is awaited at Location.', schema: ImportSchema },
      202: { description: 'In the inbox; Location tells the verdict.', schema: ImportSchema },
      408: CUT,
      413: { description: 'It is larger than a batch file may be.' },
      422: { description: 'The bytes are not those that Repr-Digest names.' },
      503: { description: 'The disk is full, or too many uploads are under way.' },
    },
    async handler({ req, res, actor }) {
      requireMediaType(req, WHOLE);
      requireNoCoding(req.headers['content-encoding']);
      const complete = isComplete(req.headers['upload-complete']) ?? true;
      const stated = req.headers['content-length'];
      const totalBytes = complete
        ? numberOf('Content-Length', stated)
        : numberOf('Upload-Length', req.headers['upload-length']);
      const sha256 = digestOf(req.headers['repr-digest']);
      const by = actorOf(actor);
      const upload = await openUpload(db, node, { actor: by, totalBytes });
      const location = `/v1/imports/${upload.id}`;
      // A refusal too must tell where to go on.
      res.setHeader('Location', location);
      const piece = { id: upload.id, offset: 0, bytes: bytesOf(req), complete, by, sha256 };
      const received = await receivePiece(db, node, piece);
      return answer(received, complete ? 202 : 201, { Location: location });
    },
  });

  routes.add({
    method: 'patch',
    path: '/v1/imports/{id}',
    summary: 'Go on with a file from `Upload-Offset`; `Upload-Complete: ?1` with its last bytes',
    roles: ACTORS,
    rawBody: PART,
    responses: {
      200: { description: 'More is awaited.', schema: ImportSchema },
      202: { description: 'It is in the inbox.', schema: ImportSchema },
      404: NOT_FOUND,
      408: CUT,
      409: { description: 'It is complete, being sent, or another offset is expected.' },
      422: { description: 'The bytes are not those that Repr-Digest names.' },
      503: { description: 'The disk is full, or too many files are being sent.' },
    },
    async handler({ req, params, actor }) {
      requireMediaType(req, PART);
      requireNoCoding(req.headers['content-encoding']);
      const offset = numberOf('Upload-Offset', req.headers['upload-offset']);
      const complete = isComplete(req.headers['upload-complete']);
      if (offset === null || complete === undefined) {
        throw new SallyportError('bad-header', 'Upload-Offset and Upload-Complete are needed.', {
          next: 'Ask for the import first: its answer has both.',
        });
      }
      const sha256 = digestOf(req.headers['repr-digest']);
      const [id, by] = [params['id'] ?? '', actorOf(actor)];
      const piece = { id, offset, bytes: bytesOf(req), complete, by, sha256 };
      const received = await receivePiece(db, node, piece);
      return answer(received, complete ? 202 : 200);
    },
  });

  routes.add({
    method: 'get',
    path: '/v1/imports/{id}',
    summary: 'How much of a file has arrived, and what the importer said of it',
    roles: READERS,
    responses: { 200: { description: 'The import.', schema: ImportSchema }, 404: NOT_FOUND },
    handler: async ({ params }) => {
      const upload = await getUpload(db, params['id'] ?? '');
      return { status: 200, headers: progressOf(upload), body: await viewImport(db, upload) };
    },
  });

  routes.add({
    method: 'get',
    path: '/v1/imports',
    summary: 'Files that were sent, newest first',
    roles: READERS,
    query: Type.Object(PageQuery, strict),
    responses: {
      200: {
        description: 'A page.',
        schema: Type.Object({
          items: Type.Array(ImportSchema),
          next_page_token: Type.Optional(Type.String()),
        }),
      },
    },
    async handler({ query, actor }) {
      const page = await readPage(
        { secret, list: 'imports', actor, query },
        (limit, after) => listUploads(db, { limit, after }),
        { cursorOf: ({ id }) => id, view: (upload) => upload },
      );
      const items = await Promise.all(page.items.map((upload) => viewImport(db, upload)));
      return { status: 200, body: { ...page, items } };
    },
  });

  routes.add({
    method: 'delete',
    path: '/v1/imports/{id}',
    summary: 'Give up a file that has not arrived whole',
    roles: ACTORS,
    responses: {
      204: { description: 'What had arrived is deleted.' },
      404: NOT_FOUND,
      409: { description: 'It is in the inbox already, or being sent.' },
    },
    async handler({ params, actor }) {
      await cancelUpload(db, node, { id: params['id'] ?? '', by: actorOf(actor) });
      return { status: 204 };
    },
  });
}

/** The headers of the resumable uploads of HTTP (draft-ietf-httpbis-resumable-upload). */
function progressOf(upload: Upload): Record<string, string> {
  const { state, received_bytes: received } = upload;
  return {
    'Upload-Offset': String(received),
    'Upload-Complete': state === 'received' ? '?1' : '?0',
  };
}

async function* bytesOf(req: RawCall['req']): AsyncGenerator<Buffer> {
  const pieces = req[Symbol.asyncIterator]();
  for (;;) {
    const silence = new AbortController();
    const late = delay(SILENCE_MS, 'late' as const, { signal: silence.signal, ref: false });
    late.catch(() => undefined);
    const next = await Promise.race([
      pieces.next().catch((cause: unknown) => {
        throw new SallyportError('body-incomplete', 'The connection ended before the file did.', {
          cause,
          next: 'Ask for the import to see how much has arrived, and go on from there.',
        });
      }),
      late,
    ]);
    silence.abort();
    if (next === 'late') {
      const text = `Nothing has come for ${SILENCE_MS / 1_000} s.`;
      throw new SallyportError('body-too-slow', text, { next: 'Go on where it stopped.' });
    }
    if (next.done) return;
    yield next.value as Buffer;
  }
}

function requireNoCoding(coding: string | undefined): void {
  if (coding === undefined || coding === 'identity') return;
  throw new SallyportError('unsupported-media-type', 'The body has a content coding.', {
    next: 'Send it without Content-Encoding.',
  });
}

function isComplete(header: string | string[] | undefined): boolean | undefined {
  if (header === undefined) return undefined;
  if (header === '?1' || header === '?0') return header === '?1';
  throw new SallyportError('bad-header', 'Upload-Complete must be ?1 or ?0.');
}

function numberOf(name: string, header: string | string[] | undefined): number | null {
  if (header === undefined) return null;
  if (typeof header === 'string' && /^\d{1,15}$/.test(header)) return Number(header);
  throw new SallyportError('bad-header', `${name} must be a number of bytes.`);
}

function digestOf(header: string | string[] | undefined): string | undefined {
  if (header === undefined) return undefined;
  const [, base64] = /(?:^|,)\s*sha-256=:([A-Za-z0-9+/]{43}=):/.exec(String(header)) ?? [];
  if (base64 !== undefined) return Buffer.from(base64, 'base64').toString('hex');
  throw new SallyportError('bad-header', 'Repr-Digest must have a sha-256 digest (RFC 9530).');
}
