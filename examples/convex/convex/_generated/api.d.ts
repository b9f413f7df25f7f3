/* eslint-disable */
/**
 * Generated `api` utility.
 *
 * THIS CODE IS AUTOMATICALLY GENERATED.
 *
 * To regenerate, run `npx convex dev`.
 * @module
 */

import type {
  ApiFromModules,
  FilterApi,
  FunctionReference,
} from "convex/server";
import type * as crons from "../crons.js";
import type * as http from "../http.js";
import type * as reconcile from "../reconcile.js";
import type * as rows from "../rows.js";
import type * as states from "../states.js";
import type * as submission from "../submission.js";
import type * as videoApi_client from "../videoApi/client.js";
import type * as videoJobs from "../videoJobs.js";

/**
 * A utility for referencing Convex functions in your app's API.
 *
 * Usage:
 * ```js
 * const myFunctionReference = api.myModule.myFunction;
 * ```
 */
declare const fullApi: ApiFromModules<{
  crons: typeof crons;
  http: typeof http;
  reconcile: typeof reconcile;
  rows: typeof rows;
  states: typeof states;
  submission: typeof submission;
  "videoApi/client": typeof videoApi_client;
  videoJobs: typeof videoJobs;
}>;
export declare const api: FilterApi<
  typeof fullApi,
  FunctionReference<any, "public">
>;
export declare const internal: FilterApi<
  typeof fullApi,
  FunctionReference<any, "internal">
>;
