/** The back end on `convex-test`, beside a running service (`VIDEO_API_URL`) that an admin's `VIDEO_API_KEY` opens. */

import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { Readable } from "node:stream";
import { text } from "node:stream/consumers";

import { convexTest } from "convex-test";
import { onTestFinished } from "vitest";

import { api } from "../convex/_generated/api";
import type { Id } from "../convex/_generated/dataModel";
import schema from "../convex/schema";
import { isFinal, type Row } from "../convex/states";

const modules = import.meta.glob("../convex/**/*.*s");

const { VIDEO_API_URL = "http://127.0.0.1:8000", VIDEO_API_KEY } = process.env;
export const HOOK = "/video-api/webhook";

export type Backend = Awaited<ReturnType<typeof backend>>;

/** One of its own for a test, set up as README says. `deaf`: no webhook comes through. */
export async function backend({ deaf = false } = {}) {
  // Ids of rows are the same in each test, and so are idempotency keys: they are apart by the API key.
  const key = await asked<{ secret: string }>("POST", "/api/v1/keys", VIDEO_API_KEY, { name: "convex" });
  const hooks = await asked<{ secret: string }>("GET", "/api/v1/webhooks/secret", key.secret);
  const t = convexTest(schema, modules);
  const name = `user-${crypto.randomUUID()}`;
  let heard = () => {};
  const server = createServer(async (request, response) => {
    const body = await text(Readable.from(request));
    if (deaf) {
      response.writeHead(503).end();
      return;
    }
    const answer = await t.fetch(request.url!, { method: "POST", headers: request.headers as HeadersInit, body });
    response.writeHead(answer.status).end();
    heard();
  });
  await new Promise<void>((listening) => server.listen(0, "127.0.0.1", listening));
  onTestFinished(async () => {
    await t.finishInProgressScheduledFunctions();
    server.closeAllConnections();
    server.close();
  });
  const { port } = server.address() as AddressInfo;
  Object.assign(process.env, {
    VIDEO_API_URL,
    VIDEO_API_KEY: key.secret,
    VIDEO_API_WEBHOOK_SECRET: hooks.secret,
    CONVEX_SITE_URL: `http://127.0.0.1:${port}`,
  });
  const user = t.withIdentity({ subject: name });
  return {
    t,
    user,
    name,
    secret: hooks.secret,
    stored: async (bytes: Uint8Array, type: string) =>
      await t.run(async (ctx) => await ctx.storage.store(new Blob([bytes as BlobPart], { type }))),
    /** Once all that was to run by now has run. */
    settled: async () => {
      const due = async () =>
        (await t.run(async (ctx) => await ctx.db.system.query("_scheduled_functions").collect())).some(
          ({ state, scheduledTime }) =>
            state.kind === "inProgress" || (state.kind === "pending" && scheduledTime <= Date.now()),
        );
      while (await due()) {
        await new Promise((resolve) => setTimeout(resolve, 1));
        await t.finishInProgressScheduledFunctions();
      }
    },
    row: async (id: Id<"videoJobs">): Promise<Row> => await user.query(api.videoJobs.get, { id }),
    /** The row once a webhook has ended it. */
    ended: async (id: Id<"videoJobs">): Promise<Row> => {
      for (;;) {
        const next = new Promise<void>((resolve) => (heard = resolve));
        const row = await user.query(api.videoJobs.get, { id });
        if (isFinal(row.status)) return row;
        await next;
      }
    },
  };
}

async function asked<T>(method: string, path: string, key: string | undefined, body?: object): Promise<T> {
  const headers = { authorization: `Bearer ${key}`, "content-type": "application/json" };
  const answer = await fetch(`${VIDEO_API_URL}${path}`, {
    method,
    headers,
    ...(body && { body: JSON.stringify(body) }),
  });
  if (!answer.ok) throw new Error(`${path}: HTTP ${answer.status}: ${await answer.text()}`);
  return (await answer.json()) as T;
}
