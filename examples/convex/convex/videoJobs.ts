/** What a front end may call: upload, create, look, cancel. Everybody sees their own jobs. */

import { paginationOptsValidator } from "convex/server";
import { ConvexError, v } from "convex/values";

import { internal } from "./_generated/api";
import type { Id } from "./_generated/dataModel";
import { mutation, query, type QueryCtx } from "./_generated/server";
import { CANCELLED, isFinal, type Row } from "./states";

const request = v.union(
  v.object({
    model: v.literal("ltx2"),
    /** None: a video of the prompt alone. */
    sourceImageId: v.optional(v.id("_storage")),
    prompt: v.optional(v.string()),
    durationSeconds: v.optional(v.number()),
  }),
  v.object({
    model: v.literal("wav2lip"),
    /** A video, or a still image. */
    sourceVideoId: v.id("_storage"),
    sourceAudioId: v.id("_storage"),
  }),
);

/** Where to POST a file; the answer has the `storageId` that `create` wants. */
export const generateUploadUrl = mutation({
  args: {},
  handler: async (ctx): Promise<string> => {
    await user(ctx);
    return await ctx.storage.generateUploadUrl();
  },
});

export const create = mutation({
  args: { request },
  handler: async (ctx, { request }): Promise<Id<"videoJobs">> => {
    const userId = await user(ctx);
    const id = await ctx.db.insert("videoJobs", { ...request, userId, status: "uploading", createdAt: Date.now() });
    await ctx.scheduler.runAfter(0, internal.submission.submit, { id });
    return id;
  },
});

export const get = query({
  args: { id: v.id("videoJobs") },
  handler: async (ctx, { id }): Promise<Row> => await own(ctx, id),
});

/** Newest first. */
export const list = query({
  args: { paginationOpts: paginationOptsValidator },
  handler: async (ctx, { paginationOpts }) => {
    const userId = await user(ctx);
    const mine = ctx.db.query("videoJobs").withIndex("by_user", (row) => row.eq("userId", userId));
    return await mine.order("desc").paginate(paginationOpts);
  },
});

/** A job that has ended stays as it is. */
export const cancel = mutation({
  args: { id: v.id("videoJobs") },
  handler: async (ctx, { id }): Promise<void> => {
    const { status, externalJobId } = await own(ctx, id);
    if (isFinal(status)) return;
    await ctx.db.patch(id, { status: "failed", errorMessage: CANCELLED, completedAt: Date.now() });
    // Without an id it is just being submitted, which ends with a look at the row.
    if (externalJobId) await ctx.scheduler.runAfter(0, internal.submission.cancel, { externalJobId });
  },
});

async function user(ctx: QueryCtx): Promise<string> {
  const identity = await ctx.auth.getUserIdentity();
  if (identity === null) throw new ConvexError("Sign in first");
  return identity.subject;
}

async function own(ctx: QueryCtx, id: Id<"videoJobs">): Promise<Row> {
  const [row, userId] = [await ctx.db.get(id), await user(ctx)];
  if (row?.userId !== userId) throw new ConvexError("There is no such job");
  return row;
}
