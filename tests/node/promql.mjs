// Parses PromQL queries, one for each argument. Fails at a syntax error.
import { parser } from '@prometheus-io/lezer-promql'

for (const query of process.argv.slice(2)) {
  parser.parse(query).iterate({
    enter(node) {
      if (node.type.isError) throw new Error(`${query}: syntax error at ${node.from}`)
    },
  })
}
console.log('DONE')
