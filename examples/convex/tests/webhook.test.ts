/** The route that webhooks come to: who is believed, and what may change. */

import { Webhook } from "standardwebhooks";
import { expect, test } from "vitest";

import { api, internal } from "../convex/_generated/api";
import type { Row } from "../convex/states";
import { backend, HOOK, type Backend } from "./backend";

const JOB = "01990c2e-7b1a-7c3e-9d55-2f1f6f0c9a11";
const COMPLETED = { job_id: JOB, model: "ltx2", status: "completed", video_url: "https://example.com/video.mp4" };
const FAILED = { job_id: JOB, model: "ltx2", status: "failed", error: "No face", error_code: "no_face_found" };

function signed({ secret }: { secret: string }, told: object, at = new Date()) {
  const [id, body] = [`msg_${crypto.randomUUID()}`, JSON.stringify(told)];
  const headers = {
    "webhook-id": id,
    "webhook-timestamp": `${Math.floor(at.getTime() / 1000)}`,
    "webhook-signature": new Webhook(secret).sign(id, at, body),
  };
  return { method: "POST", headers, body };
}

async function inserted({ t, name }: Backend, fields: Partial<Row> = { externalJobId: JOB }) {
  const row = { userId: name, model: "ltx2", status: "queued", createdAt: Date.now() } as const;
  return await t.run(async (ctx) => await ctx.db.insert("videoJobs", { ...row, ...fields }));
}

test("an end is written down, once", async () => {
  const made = await backend();
  const id = await inserted(made);
  const message = signed(made, COMPLETED);
  expect((await made.t.fetch(HOOK, message)).status).toBe(204);
  const done = await made.row(id);
  expect(done).toMatchObject({ status: "completed", outputVideoUrl: COMPLETED.video_url });

  // The same once more, and what contradicts it.
  for (const again of [
    message,
    signed(made, { ...COMPLETED, video_url: "https://example.com/other.mp4" }),
    signed(made, FAILED),
  ]) {
    expect((await made.t.fetch(HOOK, again)).status).toBe(204);
    expect(await made.row(id)).toEqual(done);
  }
});

test("a failure says why", async () => {
  const made = await backend();
  const id = await inserted(made, { status: "processing", externalJobId: JOB });
  await made.t.fetch(HOOK, signed(made, FAILED));
  expect(await made.row(id)).toMatchObject({ status: "failed", errorMessage: "No face" });
});

test("a job that was cancelled at the service is so here", async () => {
  const made = await backend();
  const id = await inserted(made);
  await made.t.fetch(HOOK, signed(made, { job_id: JOB, model: "ltx2", status: "cancelled" }));
  expect(await made.row(id)).toMatchObject({ status: "failed", errorMessage: "Cancelled" });
});

test("only what is signed, and lately, is believed", async () => {
  const made = await backend();
  const id = await inserted(made);
  const message = signed(made, COMPLETED);
  const { "webhook-signature": _, ...unsigned } = message.headers;
  const minutes = (count: number) => new Date(Date.now() + count * 60_000);
  for (const wrong of [
    { method: "POST", body: message.body },
    { ...message, headers: unsigned },
    { ...message, body: message.body.replace("completed", "failed") },
    { ...message, headers: { ...message.headers, "webhook-id": "msg_other" } },
    { ...message, headers: { ...message.headers, "webhook-timestamp": `${Math.floor(Date.now() / 1000) + 1}` } },
    signed({ secret: `whsec_${btoa("another secret, of somebody")}` }, COMPLETED),
    signed(made, COMPLETED, minutes(-6)),
    signed(made, COMPLETED, minutes(6)),
  ]) {
    expect((await made.t.fetch(HOOK, wrong)).status).toBe(401);
  }
  expect((await made.row(id)).status).toBe("queued");
});

test("news that come before the row knows its job wait for it", async () => {
  const made = await backend();
  const id = await inserted(made, { status: "uploading" });
  for (const message of [signed(made, COMPLETED), signed(made, COMPLETED)]) {
    expect((await made.t.fetch(HOOK, message)).status).toBe(204);
  }
  expect((await made.row(id)).status).toBe("uploading");
  await made.t.mutation(internal.rows.known, { id, news: { externalJobId: JOB, status: "queued" } });
  expect(await made.row(id)).toMatchObject({ status: "completed", outputVideoUrl: COMPLETED.video_url });
  expect(await made.t.run(async (ctx) => await ctx.db.query("earlyNews").collect())).toEqual([]);
});

test("news that nobody waits for are forgotten", async () => {
  const made = await backend();
  const { t } = made;
  await t.fetch(HOOK, signed(made, COMPLETED));
  const kept = async () => await t.run(async (ctx) => (await ctx.db.query("earlyNews").collect()).length);
  await t.mutation(internal.rows.forget, { before: Date.now() - 60_000 });
  expect(await kept()).toBe(1);
  await t.mutation(internal.rows.forget, { before: Date.now() + 60_000 });
  expect(await kept()).toBe(0);
});

test("a cancelled job stays cancelled", async () => {
  const made = await backend();
  const id = await inserted(made);
  await made.user.mutation(api.videoJobs.cancel, { id });
  await made.t.fetch(HOOK, signed(made, COMPLETED));
  expect(await made.row(id)).toMatchObject({ status: "failed", errorMessage: "Cancelled" });
});
