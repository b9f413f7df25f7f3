/** The video service, typed by its own description. */

import createClient from "openapi-fetch";

import { env } from "../_generated/server";
import type { components, paths } from "./schema";

export type Problem = components["schemas"]["Problem"];

/** Statuses that may pass: 401 and 403 with another `VIDEO_API_KEY`, which is no fault of the job; 409 where another
 * attempt is at it, or was faster; 408 and 429 later. */
const PASSING = [401, 403, 408, 409, 429];

/** A request that would be refused again. Anything else that is thrown may pass by itself. */
export class Refused extends Error {}

export function required(name: string): string {
  const value = env[name];
  if (!value) throw new Error(`${name} is not set: npx convex env set ${name} …`);
  return value;
}

export function videoApi() {
  return createClient<paths>({
    baseUrl: required("VIDEO_API_URL"),
    headers: { authorization: `Bearer ${required("VIDEO_API_KEY")}` },
  });
}

/** The answer of a request that succeeded. */
export function answered<T>(made: { data?: T; error?: Problem; response: Response }): T {
  if (made.data !== undefined) return made.data;
  const said = made.error?.detail ?? `HTTP ${made.response.status}`;
  if (made.response.status < 500 && !PASSING.includes(made.response.status)) throw new Refused(said);
  throw new Error(said);
}
