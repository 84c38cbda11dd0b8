output "certificate_arn" {
  description = "For the ingress controller's Service: service.beta.kubernetes.io/aws-load-balancer-ssl-cert."
  value       = aws_acm_certificate_validation.this.certificate_arn
}
