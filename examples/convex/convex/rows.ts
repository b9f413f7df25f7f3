/** What only this back end does to rows. Each is one transaction. */

import { paginationOptsValidator } from "convex/server";
import { v } from "convex/values";

import { internal } from "./_generated/api";
import type { Id } from "./_generated/dataModel";
import { internalMutation, internalQuery, type MutationCtx } from "./_generated/server";
import { news, status } from "./schema";
import { change, isFinal, type News, type Row } from "./states";

export const get = internalQuery({
  args: { id: v.id("videoJobs") },
  handler: async (ctx, { id }): Promise<Row | null> => await ctx.db.get(id),
});

export const withStatus = internalQuery({
  args: { status, paginationOpts: paginationOptsValidator },
  handler: async (ctx, { status, paginationOpts }) =>
    await ctx.db
      .query("videoJobs")
      .withIndex("by_status", (row) => row.eq("status", status))
      .paginate(paginationOpts),
});

/** The service has opened, or taken, the job of a row. False: nobody wants it any more, and it is cancelled. */
export const known = internalMutation({
  args: { id: v.id("videoJobs"), news },
  handler: async (ctx, { id, news }): Promise<boolean> => {
    const { externalJobId } = news;
    const row = await ctx.db.get(id);
    if (row === null || isFinal(row.status)) {
      await ctx.scheduler.runAfter(0, internal.submission.cancel, { externalJobId });
      return false;
    }
    await ctx.db.patch(id, { externalJobId });
    await apply(ctx, id, news);
    const early = await ctx.db
      .query("earlyNews")
      .withIndex("by_external_job", (q) => q.eq("externalJobId", externalJobId))
      .collect();
    for (const each of early) {
      await apply(ctx, id, each);
      await ctx.db.delete(each._id);
    }
    return true;
  },
});

/** News by webhook or by asking. They may come twice, late, or before the row knows the job. */
export const told = internalMutation({
  args: { news },
  handler: async (ctx, { news }): Promise<void> => {
    const { externalJobId } = news;
    const row = await ctx.db
      .query("videoJobs")
      .withIndex("by_external_job", (q) => q.eq("externalJobId", externalJobId))
      .first();
    if (row !== null) return await apply(ctx, row._id, news);
    const before = await ctx.db
      .query("earlyNews")
      .withIndex("by_external_job", (q) => q.eq("externalJobId", externalJobId))
      .first();
    if (before === null) await ctx.db.insert("earlyNews", news);
  },
});

/** It will never be made, and this is why. */
export const refused = internalMutation({
  args: { id: v.id("videoJobs"), errorMessage: v.string() },
  handler: async (ctx, { id, errorMessage }): Promise<void> => {
    await apply(ctx, id, { status: "failed", errorMessage });
  },
});

/** News that no row has asked for in so long are of somebody else's jobs with the same key. */
export const forget = internalMutation({
  args: { before: v.number() },
  handler: async (ctx, { before }): Promise<void> => {
    const old = ctx.db.query("earlyNews").withIndex("by_creation_time", (q) => q.lt("_creationTime", before));
    for (const each of await old.take(1000)) await ctx.db.delete(each._id);
  },
});

async function apply(ctx: MutationCtx, id: Id<"videoJobs">, news: Omit<News, "externalJobId">): Promise<void> {
  const row = await ctx.db.get(id);
  const patch = row && change(row.status, news, Date.now());
  if (patch) await ctx.db.patch(id, patch);
}
