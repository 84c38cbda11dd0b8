output "queue_name" {
  description = "Karpenter's settings.interruptionQueue."
  value       = aws_sqs_queue.this.name
}

output "queue_arn" {
  description = "For the policy of who reads it."
  value       = aws_sqs_queue.this.arn
}
