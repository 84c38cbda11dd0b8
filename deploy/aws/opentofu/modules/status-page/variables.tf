variable "zone" {
  description = "A public Route 53 zone, which exists."
  type        = string
}

variable "host" {
  description = "The page's host, within the zone."
  type        = string

  validation {
    condition     = endswith(var.host, ".${trimsuffix(var.zone, ".")}")
    error_message = "The host must be within the zone."
  }
}

variable "load_balancer" {
  description = "Host name of the ingress controller's load balancer; null before there is one."
  type        = string
  default     = null
}
