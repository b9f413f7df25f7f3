/** Jobs of which no webhook tells: it was lost, an action died, the service was away. */

import { internal } from "./_generated/api";
import { type ActionCtx, internalAction } from "./_generated/server";
import { newsOf, type Row } from "./states";
import { answered, Refused, videoApi } from "./videoApi/client";

const MINUTE_MS = 60_000;
const DAY_MS = 24 * 60 * MINUTE_MS;

/** So long an action is left alone with a new row. */
const PATIENCE_MS = 2 * MINUTE_MS;
/** The service knows an idempotency key for a day: what is older might be made twice. */
const GIVE_UP_MS = DAY_MS - 10 * MINUTE_MS;

export const run = internalAction({
  args: {},
  handler: async (ctx): Promise<void> => {
    for await (const row of unfinished(ctx)) {
      try {
        await looked(ctx, row, Date.now() - row.createdAt);
      } catch (error) {
        // The others have their turn; this one in a minute again.
        console.warn(`${row._id}: ${error}`);
      }
    }
    await ctx.runMutation(internal.rows.forget, { before: Date.now() - DAY_MS });
  },
});

async function looked(ctx: ActionCtx, row: Row, ageMs: number): Promise<void> {
  const { _id: id, externalJobId } = row;
  if (row.status === "uploading") {
    if (ageMs > GIVE_UP_MS) {
      await ctx.runMutation(internal.rows.refused, { id, errorMessage: "The video service was not to be reached" });
    } else if (ageMs > PATIENCE_MS) {
      await ctx.scheduler.runAfter(0, internal.submission.submit, { id });
    }
    return;
  }
  if (externalJobId === undefined) return;
  try {
    const path = { job_id: externalJobId };
    const job = answered(await videoApi().GET("/api/v1/jobs/{job_id}", { params: { path } }));
    await ctx.runMutation(internal.rows.told, { news: newsOf(job) });
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    await ctx.runMutation(internal.rows.refused, { id, errorMessage: error.message });
  }
}

async function* unfinished(ctx: ActionCtx): AsyncGenerator<Row> {
  for (const status of ["uploading", "queued", "processing"] as const) {
    let [cursor, isDone]: [string | null, boolean] = [null, false];
    while (!isDone) {
      const paginationOpts = { cursor, numItems: 100 };
      const page: { page: Row[]; continueCursor: string; isDone: boolean } = await ctx.runQuery(
        internal.rows.withStatus,
        { status, paginationOpts },
      );
      yield* page.page;
      [cursor, isDone] = [page.continueCursor, page.isDone];
    }
  }
}
