import { SallyportError } from '@sallyport/shared';

/** The code that a call fails with; undefined when it succeeds. Other errors pass through. */
export function codeOf(call: () => unknown): string | undefined {
  try {
    call();
    return undefined;
  } catch (error) {
    if (error instanceof SallyportError) return error.code;
    throw error;
  }
}

/** As {@link codeOf} for what is awaited. */
export async function codeOfAsync(promise: Promise<unknown>): Promise<string | undefined> {
  return promise.then(
    () => undefined,
    (error: unknown) => {
      if (error instanceof SallyportError) return error.code;
      throw error;
    },
  );
}
