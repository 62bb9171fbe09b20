// The script of the page: the official package, as a web application bundles it.
import * as e2b from 'e2b'
import { exercise } from './exercise.mjs'

globalThis.exercise = async (connection) => {
  const said = []
  await exercise(e2b, connection, (what) => said.push(what))
  return said
}
