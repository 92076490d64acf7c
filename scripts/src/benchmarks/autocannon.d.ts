/** The part of autocannon that the benchmarks use; it brings no types of its own. */
declare module 'autocannon' {
  type Options = {
    url: string;
    method: 'POST';
    headers: Record<string, string>;
    body: string;
    connections: number;
    duration: number;
  };
  type Result = { '2xx': number; non2xx: number; errors: number; duration: number };
  export default function autocannon(options: Options): Promise<Result>;
}
