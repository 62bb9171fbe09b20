// The exercise in whatever runtime runs this file, and which one that was, as the server's log has it too.
import * as e2b from 'e2b'
import { exercise } from './exercise.mjs'

await exercise(e2b, {}, (what) => console.log(what))
