variable "cluster_name" {
  description = "EKS's name of the cluster."
  type        = string
}
