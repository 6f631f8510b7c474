// The one thing of Node that check.ts needs.
declare const process: { argv: string[] };
