import { expect } from 'chai';
import { generateKeyPair, SignJWT, UnsecuredJWT } from 'jose';
import { SallyportError } from './errors.js';
import {
  generateSessionKey,
  issueSessionToken,
  loadSessionKey,
  verifySessionToken,
  type SessionKey,
} from './session-tokens.js';

describe('session tokens', () => {
  const realm = { issuer: 'site-a', audience: 'request-api' };
  const userId = '0197aaaa-0000-7000-8000-000000000000';
  const sessionId = '0197aaaa-0000-7000-8000-000000000001';
  const claims = { userId, sessionId };
  const start = new Date('2026-01-01T00:00:00Z');
  const at = (seconds: number) => ({
    realm,
    clock: { now: () => new Date(start.getTime() + seconds * 1_000) },
  });
  let key: SessionKey;
  let token: string;

  before(async () => {
    key = await loadSessionKey(await generateSessionKey());
    ({ token } = await issueSessionToken(key, claims, { ...at(0), minutes: 15 }));
  });

  const expectRefused = async (refused: string, options = at(1)) => {
    const error: unknown = await verifySessionToken(key, refused, options).catch(
      (err: unknown) => err,
    );
    expect(error).to.be.instanceOf(SallyportError).and.to.include({ code: 'unauthenticated' });
    return (error as SallyportError).message;
  };
  const sign = (
    header: { alg: string; typ?: string },
    signer = key.privateKey,
    changed: { sub?: string; sid?: string; iat?: number; exp?: number } = {},
  ) =>
    new SignJWT({
      sid: sessionId,
      sub: userId,
      iss: realm.issuer,
      aud: realm.audience,
      iat: start.getTime() / 1_000,
      exp: start.getTime() / 1_000 + 60,
      ...changed,
    })
      .setProtectedHeader(header)
      .sign(signer);

  it('say what was put in, for as long as was said', async () => {
    expect(await verifySessionToken(key, token, at(899))).to.deep.equal(claims);
    await expectRefused(token, at(906));
  });

  it('tell when they end', async () => {
    const { expiresAt } = await issueSessionToken(key, claims, { ...at(0), minutes: 15 });
    expect(expiresAt.toISOString()).to.equal('2026-01-01T00:15:00.000Z');
  });

  it('are good with a key that was stored and loaded again', async () => {
    const text = await generateSessionKey();
    const issued = await issueSessionToken(await loadSessionKey(text), claims, {
      ...at(0),
      minutes: 15,
    });
    expect(await verifySessionToken(await loadSessionKey(text), issued.token, at(1))).to.deep.equal(
      claims,
    );
  });

  it('are refused by another node and for another use', async () => {
    const { clock } = at(1);
    await expectRefused(token, { realm: { ...realm, issuer: 'site-b' }, clock });
    await expectRefused(token, { realm: { ...realm, audience: 'response-api' }, clock });
  });

  it('are refused when changed, unsigned, of another key, type or algorithm name', async () => {
    const [header, payload, signature] = token.split('.') as [string, string, string];
    const other = Buffer.from('{"sub":"admin"}').toString('base64url');
    const stranger = await generateKeyPair('Ed25519');
    const messages = new Set([
      await expectRefused(`${header}.${other}.${signature}`),
      await expectRefused(`${header}.${payload}.`),
      await expectRefused(new UnsecuredJWT({ sub: 'u' }).encode()),
      await expectRefused(await sign({ alg: 'Ed25519', typ: 'JWT' })),
      await expectRefused(await sign({ alg: 'Ed25519' })),
      await expectRefused(await sign({ alg: 'EdDSA', typ: 'sallyport-session+jwt' })),
      await expectRefused(
        await sign({ alg: 'Ed25519', typ: 'sallyport-session+jwt' }, stranger.privateKey),
      ),
      await expectRefused(''),
      await expectRefused('not a token'),
    ]);
    expect(messages.size).to.equal(1);
    const good = await sign({ alg: 'Ed25519', typ: 'sallyport-session+jwt' });
    expect(await verifySessionToken(key, good, at(1))).to.deep.equal(claims);
  });

  it('are refused when a claim is nothing the database can look up', async () => {
    const header = { alg: 'Ed25519', typ: 'sallyport-session+jwt' };
    for (const changed of [
      { sub: 'u' },
      { sub: `${userId}\0` },
      { sid: 's' },
      { sid: `${sessionId}'` },
    ]) {
      await expectRefused(await sign(header, key.privateKey, changed));
    }
  });

  it('are refused when they come from the future, or are good for longer than any of ours', async () => {
    await expectRefused(token, at(-60));
    const header = { alg: 'Ed25519', typ: 'sallyport-session+jwt' };
    const year = { exp: start.getTime() / 1_000 + 31_536_000 };
    await expectRefused(await sign(header, key.privateKey, year), at(86_406));
  });
});

describe('loadSessionKey', () => {
  it('refuses what is no private Ed25519 key', async () => {
    const whole = JSON.parse(await generateSessionKey()) as Record<string, string>;
    for (const text of ['', '{}', 'null', JSON.stringify({ ...whole, d: undefined })]) {
      const error: unknown = await loadSessionKey(text).catch((err: unknown) => err);
      expect(error).to.be.instanceOf(SallyportError).and.to.include({ code: 'config-invalid' });
    }
  });
});
