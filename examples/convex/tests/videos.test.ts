/** Videos by a real service: what a front end sees. */

import { expect, test } from "vitest";

import { api, internal } from "../convex/_generated/api";
import { CANCELLED, type Row } from "../convex/states";
import { answered, videoApi } from "../convex/videoApi/client";
import { backend } from "./backend";

const PICTURE = Uint8Array.from(
  atob(
    "iVBORw0KGgoAAAANSUhEUgAAACAAAAAgCAIAAAD8GO2jAAAAOElEQVR42u3NwQkAQAgDwRMC0f7L9WMVgXvsNDAl6SXJdjaYmWzQ3QQEBAQE" +
      "BAQEBAQ/BLW70eAAP6MGSFF7+P4AAAAASUVORK5CYII=",
  ),
  (character) => character.charCodeAt(0),
);
const TEXT = new TextEncoder().encode("no media at all");
const SHORT = { model: "ltx2", durationSeconds: 1, prompt: "The picture moves" } as const;

async function jobsOf(userId: string) {
  return answered(await videoApi().GET("/api/v1/jobs", { params: { query: { user_id: userId } } })).data;
}

test("a picture becomes a video, and a webhook tells of it", async () => {
  const { user, stored, row, ended } = await backend();
  const sourceImageId = await stored(PICTURE, "image/png");
  const id = await user.mutation(api.videoJobs.create, { request: { ...SHORT, sourceImageId } });
  expect(await row(id)).toMatchObject({ status: "uploading", model: "ltx2", prompt: SHORT.prompt });

  const done = await ended(id);
  expect(done).toMatchObject({ status: "completed", completedAt: expect.any(Number) });
  const video = await fetch(done.outputVideoUrl!);
  expect(video.headers.get("content-type")).toBe("video/mp4");

  const paginationOpts = { numItems: 10, cursor: null };
  expect((await user.query(api.videoJobs.list, { paginationOpts })).page).toEqual([done]);
});

test("what cannot be made says why", async () => {
  const { user, stored, ended } = await backend();
  const [sourceVideoId, sourceAudioId] = [await stored(TEXT, "video/mp4"), await stored(TEXT, "audio/wav")];
  const request = { model: "wav2lip", sourceVideoId, sourceAudioId } as const;
  const failed = await ended(await user.mutation(api.videoJobs.create, { request }));
  expect(failed).toMatchObject({ status: "failed", errorMessage: expect.stringMatching(/./) });
  expect(failed.outputVideoUrl).toBeUndefined();
});

test("what the service refuses is told, and not tried again", async () => {
  const { t, user, row, settled } = await backend();
  const id = await user.mutation(api.videoJobs.create, { request: { ...SHORT, durationSeconds: 11 } });
  await settled();
  expect(await row(id)).toMatchObject({ status: "failed", errorMessage: expect.stringContaining("duration") });
  await t.action(internal.submission.submit, { id });
  expect((await row(id)).externalJobId).toBeUndefined();
});

test("however often a row is submitted, there is one job", async () => {
  const { t, user, name, stored, row, settled } = await backend();
  for (const source of [{}, { sourceImageId: await stored(PICTURE, "image/png") }]) {
    const id = await user.mutation(api.videoJobs.create, { request: { ...SHORT, ...source } });
    await settled();
    const { externalJobId } = await row(id);
    // As it is where an action dies before it has said what it did.
    const before = "sourceImageId" in source ? { externalJobId: externalJobId! } : {};
    await t.run(async (ctx) => {
      const { _id, _creationTime, externalJobId: _, ...rest } = (await ctx.db.get(id))!;
      await ctx.db.replace(id, { ...rest, status: "uploading", ...before });
    });
    await t.action(internal.submission.submit, { id });
    expect(await row(id)).toMatchObject({ externalJobId });
    await user.mutation(api.videoJobs.cancel, { id });
  }
  await settled();
  expect(await jobsOf(name)).toHaveLength(2);
});

test("a cancelled job stays so, here and at the service", async () => {
  const { user, name, row, settled } = await backend();
  const id = await user.mutation(api.videoJobs.create, { request: { ...SHORT, durationSeconds: 10 } });
  await settled();
  await user.mutation(api.videoJobs.cancel, { id });
  await settled();
  expect(await row(id)).toMatchObject({ status: "failed", errorMessage: CANCELLED });
  const [job] = await jobsOf(name);
  expect([job?.status, job?.stage]).toContainEqual(expect.stringMatching(/^cancell/));
});

test("a row that is cancelled while it is submitted has its job cancelled", async () => {
  const { t, user, name, row, settled } = await backend();
  const id = await t.run(
    async (ctx) =>
      await ctx.db.insert("videoJobs", { ...SHORT, userId: name, status: "uploading", createdAt: Date.now() }),
  );
  await user.mutation(api.videoJobs.cancel, { id });
  const body = { model: "ltx2", duration: 10, image_url: null, user_id: name } as const;
  const { job_id: externalJobId } = answered(await videoApi().POST("/api/v1/generate", { body }));
  await t.mutation(internal.rows.known, { id, news: { externalJobId, status: "queued" } });
  await settled();
  expect(await row(id)).toMatchObject({ status: "failed", errorMessage: CANCELLED });
  const [job] = await jobsOf(name);
  expect([job?.status, job?.stage]).toContainEqual(expect.stringMatching(/^cancell/));
});

test("a job whose webhook never comes is asked for", async () => {
  const { t, user, row, settled } = await backend({ deaf: true });
  const id = await user.mutation(api.videoJobs.create, { request: SHORT });
  await settled();
  const { externalJobId } = await row(id);
  await videoApi().GET("/api/v1/jobs/{job_id}", {
    params: { path: { job_id: externalJobId! }, header: { prefer: "wait=60" } },
  });
  expect((await row(id)).status).toBe("queued");
  await t.action(internal.reconcile.run, {});
  expect(await row(id)).toMatchObject({ status: "completed", outputVideoUrl: expect.stringMatching(/^http/) });
});

test("a row that no action has submitted is submitted later", async () => {
  const { t, user, name, row, settled } = await backend();
  const insert = async (ageMs: number) =>
    await t.run(
      async (ctx) =>
        await ctx.db.insert("videoJobs", {
          ...SHORT,
          userId: name,
          status: "uploading",
          createdAt: Date.now() - ageMs,
        }),
    );
  const [young, left, old] = [await insert(0), await insert(10 * 60_000), await insert(48 * 3600_000)];
  await t.action(internal.reconcile.run, {});
  await settled();
  expect((await row(young)).status).toBe("uploading");
  expect((await row(left)).externalJobId).toBeDefined();
  expect(await row(old)).toMatchObject({ status: "failed", errorMessage: expect.stringContaining("reached") });
  await user.mutation(api.videoJobs.cancel, { id: left });
  await settled();
});

test("a job that the service has no more has failed", async () => {
  const { t, name, row } = await backend();
  const gone = {
    externalJobId: crypto.randomUUID(),
    userId: name,
    status: "processing",
    createdAt: Date.now(),
  } as const;
  const id = await t.run(async (ctx) => await ctx.db.insert("videoJobs", { ...SHORT, ...gone }));
  await t.action(internal.reconcile.run, {});
  expect(await row(id)).toMatchObject({ status: "failed", errorMessage: "Job not found" });
});

test("a key that opens nothing any more ends no row", async () => {
  const { t, name, row } = await backend();
  const insert = async (fields: Partial<Row>) => {
    const common = { ...SHORT, userId: name, createdAt: Date.now() - 10 * 60_000 };
    return await t.run(async (ctx) => await ctx.db.insert("videoJobs", { ...common, status: "uploading", ...fields }));
  };
  const made = await insert({ externalJobId: crypto.randomUUID(), status: "processing" });
  const left = await insert({});
  process.env.VIDEO_API_KEY = "revoked";
  await t.action(internal.reconcile.run, {});
  await expect(t.action(internal.submission.submit, { id: left })).rejects.toThrow("Invalid API key");
  expect([(await row(made)).status, (await row(left)).status]).toEqual(["processing", "uploading"]);
});

test("nobody sees another's jobs", async () => {
  const { t, user, settled } = await backend();
  const id = await user.mutation(api.videoJobs.create, { request: { ...SHORT, durationSeconds: 11 } });
  await settled();
  const other = t.withIdentity({ subject: "other" });
  await expect(other.query(api.videoJobs.get, { id })).rejects.toThrow("no such job");
  await expect(other.mutation(api.videoJobs.cancel, { id })).rejects.toThrow("no such job");
  await expect(t.mutation(api.videoJobs.generateUploadUrl, {})).rejects.toThrow("Sign in");
  expect((await other.query(api.videoJobs.list, { paginationOpts: { numItems: 10, cursor: null } })).page).toEqual([]);
});
