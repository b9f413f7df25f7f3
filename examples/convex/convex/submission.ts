/** A row on its way to the service. Both actions may run any number of times, also side by side. */

import { v } from "convex/values";

import { internal } from "./_generated/api";
import type { Id } from "./_generated/dataModel";
import { type ActionCtx, internalAction } from "./_generated/server";
import { newsOf, ours, type Row } from "./states";
import { answered, Refused, required, videoApi } from "./videoApi/client";
import type { components } from "./videoApi/schema";

type InputType = components["schemas"]["UploadRequest"]["input_type"];

/** So often, over an hour, the service is asked to cancel a job. */
const CANCEL_ATTEMPTS = 8;

/** Submit a row that is `uploading`. What goes wrong for the moment is tried again by `reconcile`. */
export const submit = internalAction({
  args: { id: v.id("videoJobs") },
  handler: async (ctx, { id }): Promise<void> => {
    const row = await ctx.runQuery(internal.rows.get, { id });
    if (row?.status !== "uploading") return;
    try {
      await submitted(ctx, row);
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      await ctx.runMutation(internal.rows.refused, { id, errorMessage: error.message });
    }
  },
});

export const cancel = internalAction({
  args: { externalJobId: v.string(), attempt: v.optional(v.number()) },
  handler: async (ctx, { externalJobId, attempt = 1 }): Promise<void> => {
    try {
      answered(await videoApi().POST("/api/v1/jobs/{job_id}/cancel", { params: { path: { job_id: externalJobId } } }));
    } catch (error) {
      if (error instanceof Refused || attempt === CANCEL_ATTEMPTS) return;
      const later = { externalJobId, attempt: attempt + 1 };
      await ctx.scheduler.runAfter(15_000 * 2 ** attempt, internal.submission.cancel, later);
    }
  },
});

async function submitted(ctx: ActionCtx, row: Row): Promise<void> {
  const api = videoApi();
  let jobId: string | undefined = row.externalJobId;
  if (jobId !== undefined) {
    // An earlier attempt came so far.
    const job = answered(await api.GET("/api/v1/jobs/{job_id}", { params: { path: { job_id: jobId } } }));
    if (job.status !== "uploading") {
      await ctx.runMutation(internal.rows.told, { news: newsOf(job) });
      return;
    }
  }
  for (const [inputType, storageId] of files(row)) {
    const file = await ctx.storage.get(storageId);
    if (file === null) throw new Refused("A source file is gone");
    const opened = await uploaded(ctx, row._id, inputType, file, jobId);
    if (opened === null) return;
    jobId = opened;
  }
  const created = answered(
    await api.POST("/api/v1/generate", {
      params: { header: { "Idempotency-Key": row._id } },
      body: body(row, jobId),
    }),
  );
  const news = { externalJobId: created.job_id, status: ours(created.status) };
  await ctx.runMutation(internal.rows.known, { id: row._id, news });
}

/** The id of the service's job that has the file; null: it is not wanted any more. */
async function uploaded(
  ctx: ActionCtx,
  id: Id<"videoJobs">,
  inputType: InputType,
  file: Blob,
  jobId: string | undefined,
): Promise<string | null> {
  const ticket = answered(
    await videoApi().POST("/api/v1/presign/upload", {
      body: {
        input_type: inputType,
        size: file.size,
        ...(file.type.startsWith(`${inputType}/`) && { content_type: file.type }),
        ...(jobId !== undefined && { job_id: jobId }),
      },
    }),
  );
  // Before anything is sent: whoever comes after a crash goes on with this job.
  const news = { externalJobId: ticket.job_id, status: "uploading" as const };
  if (!(await ctx.runMutation(internal.rows.known, { id, news }))) return null;
  const put = await fetch(ticket.upload_url, {
    method: "PUT",
    headers: { "content-type": ticket.content_type },
    body: file,
  });
  if (!put.ok) throw new Error(`The upload was answered with HTTP ${put.status}`);
  return ticket.job_id;
}

function files(row: Row): [InputType, Id<"_storage">][] {
  const found: [InputType, Id<"_storage"> | undefined][] = [
    ["image", row.sourceImageId],
    ["video", row.sourceVideoId],
    ["audio", row.sourceAudioId],
  ];
  return found.flatMap(([type, id]) => (id === undefined ? [] : [[type, id]]));
}

/** Of the row alone, so that each attempt sends the same. `jobId`: the job that its files were uploaded to. */
function body(row: Row, jobId: string | undefined) {
  const common = {
    webhook_url: `${required("CONVEX_SITE_URL")}/video-api/webhook`,
    user_id: row.userId,
    metadata: { video_job: row._id },
  };
  const wishes = {
    ...(row.prompt !== undefined && { prompt: row.prompt }),
    ...(row.durationSeconds !== undefined && { duration: row.durationSeconds }),
  };
  if (jobId === undefined) return { model: "ltx2" as const, ...common, ...wishes, image_url: null };
  const uploaded = { ...common, job_id: jobId };
  return row.model === "ltx2"
    ? { model: "ltx2" as const, ...uploaded, ...wishes }
    : { model: "wav2lip" as const, ...uploaded };
}
