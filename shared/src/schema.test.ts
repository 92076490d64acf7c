import { expect } from 'chai';
import { Type } from 'typebox';
import { SallyportError } from './errors.js';
import { Timestamp } from './records.js';
import { compileQuerySchema, compileSchema, UserTime } from './schema.js';

const Shape = Type.Object(
  {
    name: Type.String({ minLength: 1, maxLength: 3 }),
    size: Type.Optional(Type.Integer({ maximum: 10 })),
    kind: Type.Optional(Type.Union([Type.Literal('a'), Type.Literal('b')])),
    tags: Type.Optional(Type.Array(Type.String(), { maxItems: 1 })),
    id: Type.Optional(Type.String({ format: 'uuid' })),
  },
  { additionalProperties: false },
);

function faultOf(value: unknown): SallyportError {
  try {
    compileSchema(Shape)(value);
  } catch (error) {
    return error as SallyportError;
  }
  throw new Error('the value was accepted');
}

describe('compileSchema', () => {
  it('gives back the value that fits', () => {
    const value = { name: 'abc', kind: 'a', id: '0197aaaa-0000-7000-8000-000000000000' };
    expect(compileSchema(Shape)(value)).to.equal(value);
  });

  it('compiles a schema once', () => {
    expect(compileSchema(Shape)).to.equal(compileSchema(Shape));
  });

  it('points at a field that is not known', () => {
    const fault = faultOf({ name: 'a', 'x/y~z': 1 });
    expect(fault.code).to.equal('unknown-field');
    expect(fault.errors).to.deep.equal([
      { pointer: '/x~1y~0z', code: 'unknown-field', detail: 'is not known here' },
    ]);
  });

  it('points at a field that is missing', () => {
    expect(faultOf({}).errors[0]).to.include({ pointer: '/name', detail: 'is missing' });
  });

  it('tells the limit and the size, never the value', () => {
    const [first] = faultOf({ name: 'secret' }).errors;
    expect(first).to.include({ pointer: '/name', code: 'bad-field', limit: 3, actual: 6 });
    expect(faultOf({ name: 'a', size: 11 }).errors[0]).to.include({ limit: 10, actual: 11 });
    expect(faultOf({ name: 'a', tags: ['a', 'b'] }).errors[0]).to.include({ limit: 1, actual: 2 });
    expect(JSON.stringify(faultOf({ name: 'secret' }))).not.to.contain('secret');
  });

  it('names what may stand in the place', () => {
    const Choice = Type.Object({
      kind: Type.Unsafe<string>({ type: 'string', enum: ['a', 'b'] }),
      fixed: Type.Optional(Type.Literal(1)),
      map: Type.Optional(Type.Object({}, { maxProperties: 1, additionalProperties: true })),
    });
    const check = compileSchema(Choice);
    expect(() => check({ kind: 'c' })).to.throw(SallyportError, 'must be one of a, b');
    expect(() => check({ kind: 'a', fixed: 2 })).to.throw(SallyportError, 'must be 1');
    expect(() => check({ kind: 'a', map: { a: 1, b: 2 } })).to.throw(SallyportError, '/map');
  });

  it('coerces nothing', () => {
    expect(faultOf({ name: 'a', size: '1' }).errors[0]).to.include({ pointer: '/size' });
  });

  it('names the whole value when it is of the wrong kind', () => {
    expect(faultOf([]).message).to.equal('The value must be object.');
  });
});

describe('compileQuerySchema', () => {
  const Query = Type.Object(
    {
      wait: Type.Optional(Type.Integer({ maximum: 25 })),
      page_size: Type.Integer({ default: 50 }),
      all: Type.Optional(Type.Boolean()),
      status: Type.Optional(Type.Array(Type.String())),
    },
    { additionalProperties: false },
  );

  it('reads numbers, booleans and lists from text and fills in defaults', () => {
    expect(compileQuerySchema(Query)({ wait: '25', all: 'true', status: 'done' })).to.deep.equal({
      wait: 25,
      page_size: 50,
      all: true,
      status: ['done'],
    });
  });

  it('refuses what is no number and what is not known', () => {
    expect(() => compileQuerySchema(Query)({ wait: 'long' })).to.throw(SallyportError, '/wait');
    expect(() => compileQuerySchema(Query)({ other: '1' })).to.throw(SallyportError, '/other');
  });

  it('refuses NUL, in lists too', () => {
    for (const value of [{ status: 'a\0' }, { wait: ['1', '\0'] }]) {
      expect(() => compileQuerySchema(Query)(value)).to.throw(SallyportError, 'NUL');
    }
  });
});

describe('Timestamp', () => {
  it('takes what `toISOString` writes, from 1970 on', () => {
    const check = compileSchema(Timestamp);
    for (const time of ['1970-01-01T00:00:00.000Z', '2026-01-31T09:30:00.123Z']) {
      expect(check(time)).to.equal(time);
    }
    for (const time of [
      '0000-01-01T00:00:00.000Z',
      '1969-12-31T23:59:59.999Z',
      '2026-02-30T00:00:00.000Z',
      '2026-01-31T09:30:00Z',
    ]) {
      expect(() => check(time), time).to.throw(SallyportError);
    }
  });
});

describe('UserTime', () => {
  it('takes times that the database takes, and no others', () => {
    const check = compileSchema(UserTime);
    for (const time of [
      '2026-01-31T09:30:00Z',
      '0001-01-01T00:00:00.123456789+14:00',
      '9999-12-31T23:59:59-00:30',
    ]) {
      expect(check(time)).to.equal(time);
    }
    for (const time of [
      '0000-01-01T00:00:00Z',
      '2016-12-31T23:59:60Z',
      '2026-02-30T00:00:00Z',
      '2026-01-01T00:00:00+23:59',
      `2026-01-01T00:00:00.${'0'.repeat(200)}Z`,
      '2026-01-01 00:00:00Z',
      '2026-01-01',
    ]) {
      expect(() => check(time), time).to.throw(SallyportError, 'must be a time such as');
    }
  });
});
